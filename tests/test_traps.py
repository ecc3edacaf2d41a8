"""The ten traps of the reference code and its checkpoints, one test each.

They are what a user meets who brings published checkpoints and files to present libraries. Each test shows the trap
where the libraries at hand can show it, and that this toolkit does not fall into it.
"""

import ast
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertModel

from pipeline.captioner.model import load_captioner
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.checkpoints.captioner import import_captioner
from pipeline.checkpoints.hubert import import_hubert
from pipeline.checkpoints.image_tokenizers import TokenizerSources, import_image_tokenizer
from pipeline.checkpoints.torch_files import read_torch
from pipeline.errors import InputError
from pipeline.files import read_json, write_json
from pipeline.manifest import Caption, Row, write_splits
from pipeline.speech.hubert import SpeechEncoder
from pipeline.tokens.exchange import export_units
from pipeline.tokens.parts import UnitsPart, write_units_part
from pipeline.vision.vit_vqgan import sincos_positions
from tests.pipeline.checkpoints.miniatures import hubert_model, save_hubert
from tests.pipeline.checkpoints.test_captioner import git
from tests.pipeline.checkpoints.test_image_tokenizers import vit

ROOT = Path(__file__).resolve().parent.parent


def test_trap_1_unit_100_and_bos_share_an_id() -> None:
    """The released map sends unit 100 to 101, which is BOS; those checkpoints need it, new ones must not have it."""
    released, compact = UnitVocabulary(200, layout="released"), UnitVocabulary(200)
    assert released.encode([99, 100, 101, 199]) == [100, 101, 104, 202] and released.bos == 101
    # Decoded as they were trained: BOS at the start is BOS, 101 inside is unit 100.
    assert released.decode([101, 100, 101, 104, 102]) == [99, 100, 101]
    specials = {compact.pad, compact.bos, compact.eos}
    ids = {compact.encode([unit])[0] for unit in range(200)}
    assert len(ids) == 200 and not ids & specials
    for vocabulary in (released, compact):
        assert vocabulary.decode(vocabulary.encode(list(range(200)))) == list(range(200))


@pytest.mark.parametrize("layout", ["released", "compact"])
def test_trap_2_the_cut_at_eos(layout: str) -> None:
    """EOS last, absent and first: the reference says a phantom unit, loses a character, or does not cut."""
    vocabulary = UnitVocabulary(200, layout=layout)
    ids, eos = vocabulary.encode([4, 5, 6]), vocabulary.eos
    assert vocabulary.decode([*ids, eos]) == [4, 5, 6]
    assert vocabulary.decode(ids) == [4, 5, 6]
    assert vocabulary.decode([eos, *ids]) == []
    assert vocabulary.decode([*ids, eos, eos, *ids]) == [4, 5, 6]


def test_trap_3_padding_changes_group_norm_features(tmp_path: Path) -> None:
    """transformers' HuBERT base gives other features for a padded utterance; ours the same alone and in a batch."""
    model = hubert_model("base")
    model.save_pretrained(tmp_path / "hf")
    short, long = (np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32) for n in (8000, 16000))
    encoder = SpeechEncoder(tmp_path / "hf", 2)
    alone, batched = encoder.encode([short])[0], encoder.encode([short, long])[0]
    torch.testing.assert_close(batched, alone, atol=1e-5, rtol=0)
    padded = torch.zeros(1, 16000)
    padded[0, :8000] = torch.from_numpy(short)
    mask = (torch.arange(16000) < 8000).long()[None]
    with torch.inference_mode():
        theirs = model(padded, attention_mask=mask, output_hidden_states=True).hidden_states[2][0, : len(alone)]
    assert float((theirs - alone).norm() / alone.norm()) > 0.05


def test_trap_4_hubert_base_is_not_normalised_whatever_the_preprocessor_says(tmp_path: Path) -> None:
    model = hubert_model("base")
    model.save_pretrained(tmp_path / "hf")
    write_json(tmp_path / "hf/preprocessor_config.json", {"do_normalize": True})
    assert import_hubert(tmp_path / "hf", tmp_path / "base").normalize is False
    assert read_json(tmp_path / "base/preprocessor_config.json")["do_normalize"] is False
    with pytest.raises(InputError, match="trained with normalize false.*asked for with true.*features.normalize"):
        SpeechEncoder(tmp_path / "base", 1, normalize=True)
    save_hubert(tmp_path / "large.pt", hubert_model("large"), "fairseq", normalize=True)
    import_hubert(tmp_path / "large.pt", tmp_path / "large")
    with pytest.raises(InputError, match="trained with normalize true"):
        SpeechEncoder(tmp_path / "large", 1)


def test_trap_5_weights_tied_by_hand_survive_saving(tmp_path: Path) -> None:
    """The reference ties output and word embeddings by hand; transformers 5 then saves one and loads neither."""
    model = git()
    model.git.embeddings.word_embeddings.weight = model.output.weight
    torch.save({"state_dict": {f"model.{n}": v for n, v in model.state_dict().items()}}, tmp_path / "x.ckpt")
    import_captioner(tmp_path / "x.ckpt", tmp_path / "once")
    load_captioner(tmp_path / "once").save_pretrained(tmp_path / "twice")
    for folder in ("once", "twice"):
        loaded = load_captioner(tmp_path / folder)
        torch.testing.assert_close(loaded.output.weight, model.output.weight, atol=0, rtol=0)
        torch.testing.assert_close(loaded.git.embeddings.word_embeddings.weight, model.output.weight, atol=0, rtol=0)


def test_trap_6_no_star_imports() -> None:
    """`from transformers....modeling_git import *` brings next to nothing since version 5; we name what we take."""
    import transformers.models.git.modeling_git as modeling

    assert "GitVisionEmbeddings" not in modeling.__all__ and hasattr(modeling, "GitVisionEmbeddings")
    for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), path


def test_trap_7_files_that_torch_load_refuses_by_default(tmp_path: Path) -> None:
    """`.unit` files are arrays and tokenizer.ckpt a module, both pickled: refused since torch 2.6, read here."""
    units = np.array([7, 7, 100])
    torch.save(units, tmp_path / "a.unit")
    torch.save(torch.nn.Linear(2, 3), tmp_path / "module.ckpt")
    for name in ("a.unit", "module.ckpt"):
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / name)
    np.testing.assert_array_equal(read_torch(tmp_path / "a.unit"), units)
    assert read_torch(tmp_path / "module.ckpt").path == "torch.nn.modules.linear.Linear"


def test_trap_8_a_pickled_tokenizer_is_read_without_its_packages(tmp_path: Path) -> None:
    """Its classes are enhancing's, which would import omegaconf, pytorch_lightning and a logger."""
    torch.save(vit(), tmp_path / "tokenizer.ckpt")
    with zipfile.ZipFile(tmp_path / "tokenizer.ckpt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "tokenizer.ckpt", "w") as archive:
        for name, data in members.items():
            archive.writestr(
                name, data.replace(b"cpipeline.vision.vit_vqgan\n", b"cenhancing.modules.stage1.vitvqgan\n")
            )
    before = set(sys.modules)
    import_image_tokenizer(TokenizerSources(tmp_path / "tokenizer.ckpt"), tmp_path / "out")
    assert not {name.split(".")[0] for name in set(sys.modules) - before} & {"enhancing", "pytorch_lightning", "wandb"}


def test_trap_9_positions_without_a_type_that_numpy_dropped() -> None:
    """The original builds its sine-cosine positions with `np.float`, which numpy 1.24 removed."""
    assert not hasattr(np, "float")
    positions = sincos_positions(8, (2, 3))[0].numpy()
    omega = 1.0 / 10000 ** (np.arange(2, dtype=np.float64) / 2)
    columns, rows = np.meshgrid(np.arange(3, dtype=np.float64), np.arange(2, dtype=np.float64))
    parts = [f(axis.reshape(-1)[:, None] * omega) for axis in (columns, rows) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(positions, np.concatenate(parts, axis=1), atol=1e-7)


def test_trap_10_names_lose_letters_of_their_extension(tmp_path: Path) -> None:
    """fairseq's `rstrip(".wav")` strips characters; what is written here keeps names whole."""
    assert "wav_a.wav".rstrip(".wav") == "wav_" and "calf.flac".rstrip(".flac") == ""
    rows = [
        Row(name, None, (Caption(name, f"{name}.{end}", 16000, 16000, "0" * 64, "", ""),))
        for name, end in (("wav_a", "wav"), ("calf", "flac"))
    ]
    write_splits(tmp_path / "manifests", {"test": rows}, rows_per_shard=9, seed=0)
    part = UnitsPart.from_utterances(["wav_a", "calf"], [[1, 2], [3]], [[1, 1], [2]])
    write_units_part(tmp_path / "units/test/00000.npz", part)
    (path,) = export_units(tmp_path / "manifests", tmp_path / "units", "test", "fairseq", tmp_path / "out")
    assert sorted(path.read_text().splitlines()) == ["calf|3 3", "wav_a|1 2"]


def test_hugging_face_names_of_the_positional_convolution_are_both_read(tmp_path: Path) -> None:
    """Ports saved before torch 2.0 call its weight norm `weight_g` and `weight_v`."""
    model = hubert_model("base")
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").unlink()
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in model.state_dict().items()
    }
    torch.save(old, tmp_path / "hf/pytorch_model.bin")
    import_hubert(tmp_path / "hf", tmp_path / "out")
    loaded = HubertModel.from_pretrained(tmp_path / "out", local_files_only=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=0, rtol=0)
