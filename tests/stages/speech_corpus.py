"""A tiny corpus, a tiny encoder and its codebook, for tests of the units stage."""

from pathlib import Path

import numpy as np

from pipeline.files import sha256_file
from pipeline.manifest import Caption, Row, write_splits
from pipeline.media import write_wav
from pipeline.speech.hubert import SpeechEncoder
from pipeline.speech.kmeans import fit_kmeans


def write_corpus(folder: Path, num_train: int = 9, rows_per_shard: int = 3) -> None:
    """`folder/corpus` and `folder/manifests`: noises of 0.1 to 0.7 s, at 16 kHz and 8 kHz, in two splits."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[Row]] = {"train": [], "val": []}
    for number in range(num_train + 3):
        rate = 8000 if number % 4 == 1 else 16_000
        path = folder / "corpus" / f"{number}.wav"
        waveform = rng.standard_normal(int(rng.integers(rate // 10, rate * 7 // 10))).astype(np.float32) / 10
        write_wav(path, waveform, rate)
        caption = Caption(f"c{number}", path.name, len(waveform), rate, sha256_file(path), "", "noise")
        splits["train" if number < num_train else "val"].append(Row(f"k{number}", None, (caption,)))
    write_splits(folder / "manifests", splits, rows_per_shard=rows_per_shard, seed=0)


def write_models(folder: Path, num_units: int = 12) -> None:
    """`folder/encoder`, a random HuBERT of width 16, and `folder/codebook.safetensors` of its second layer."""
    import torch
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = HubertConfig(**small, conv_dim=[8] * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
    HubertModel(config).save_pretrained(folder / "encoder")
    encoder = SpeechEncoder(folder / "encoder", 2)
    noise = np.random.default_rng(1).standard_normal(80_000).astype(np.float32) / 10
    features = encoder.encode([noise])[0].numpy()
    fit_kmeans(features, num_units, seed=0, metadata=encoder.identity).save(folder / "codebook.safetensors")
