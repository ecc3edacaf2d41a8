"""wav2vec 2.0 and Whisper through transformers: tiny models with random weights, saved as published ones are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.evaluation.recogniser import RecogniserSettings, make_recogniser, refuse_absent
from pipeline.evaluation.wav2vec2 import Wav2Vec2Recogniser, batches
from pipeline.evaluation.whisper import WhisperRecogniser

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"EATOINSHR'"]


def _waveforms() -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    lengths = (16000, 4321, 9000, 16000, 300, 0, 20011, 9000)
    return [rng.normal(0, 0.1, length).astype(np.float32) for length in lengths]


def _wav2vec2(folder: Path, norm: str) -> str:
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(LETTERS)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=norm == "layer")
    Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(LETTERS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        initializer_range=0.5,
    )
    model = Wav2Vec2ForCTC(config)
    with torch.no_grad():  # louder than its neighbours' average, so that frames differ and something is said
        model.wav2vec2.feature_projection.projection.weight.mul_(30)
        model.lm_head.bias.zero_()
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_batch_hears_what_it_hears_alone(tmp_path: Path, norm: str) -> None:
    model = _wav2vec2(tmp_path / "model", norm)
    waveforms = _waveforms()
    for least in (0.0, 0.5):
        alone = Wav2Vec2Recogniser(model, min_seconds=least).transcribe(waveforms)
        together = Wav2Vec2Recogniser(model, batch_size=3, min_seconds=least).transcribe(waveforms)
        assert together == alone and len(set(alone)) > 3
    backwards = Wav2Vec2Recogniser(model, batch_size=8, min_seconds=0.5).transcribe(waveforms[::-1])
    assert backwards[::-1] == together


def test_filling_up_a_group_norm_model_would_change_what_it_hears(tmp_path: Path) -> None:
    """Why batches of it hold one length: the same utterance with silence behind it has other frames."""
    from transformers import Wav2Vec2ForCTC

    model = Wav2Vec2ForCTC.from_pretrained(_wav2vec2(tmp_path / "model", "group")).eval()
    waveform = torch.from_numpy(_waveforms()[2])[None]
    padded = torch.nn.functional.pad(waveform, (0, 9000))
    mask = torch.cat([torch.ones(1, 9000), torch.zeros(1, 9000)], dim=1).long()
    with torch.inference_mode():
        alone, filled = model(waveform).logits, model(padded, attention_mask=mask).logits
    assert (alone - filled[:, : alone.shape[1]]).abs().max() > 1e-2
    assert list(batches([5, 3, 5, 5], 2, equal=True)) == [[1], [0, 2], [3]]
    assert list(batches([5, 3, 5, 5], 2, equal=False)) == [[1, 0], [2, 3]]


def _whisper(folder: Path, multilingual: bool) -> str:
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    letters = ["!", *"abcdefghijklmnop", "Ġ"]
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    special.append("<|notimestamps|>")
    vocabulary = {token: place for place, token in enumerate([*letters, *special])}
    tokenizer = WhisperTokenizer(vocabulary, [], extra_special_tokens=special[1:])
    extractor = WhisperFeatureExtractor(feature_size=8)
    WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    end, start = vocabulary["<|endoftext|>"], vocabulary["<|startoftranscript|>"]
    size = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        num_mel_bins=8,
        d_model=16,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=24,
        init_std=0.8,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        **size,
    )
    model = WhisperForConditionalGeneration(config)
    for name, value in {
        "_from_model_config": False,  # as published: a file of its own, and not made from the model's
        "is_multilingual": multilingual,
        "no_timestamps_token_id": vocabulary["<|notimestamps|>"],
        "max_length": 24,
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
    }.items():
        setattr(model.generation_config, name, value)
    if multilingual:
        model.generation_config.lang_to_id = {code: vocabulary[code] for code in ("<|en|>", "<|de|>")}
        model.generation_config.task_to_id = {t: vocabulary[f"<|{t}|>"] for t in ("transcribe", "translate")}
    model.save_pretrained(folder)
    return str(folder)


def test_whisper_is_greedy_and_the_same_in_any_batch(tmp_path: Path) -> None:
    model = _whisper(tmp_path / "model", multilingual=True)
    waveforms = _waveforms()
    recogniser = WhisperRecogniser(model)
    alone = recogniser.transcribe(waveforms)
    assert WhisperRecogniser(model, batch_size=3).transcribe(waveforms) == alone
    assert recogniser.transcribe(waveforms) == alone and len(set(alone)) > 2 and recogniser.num_cut == 0
    assert [not text for text in alone] == [not len(waveform) for waveform in waveforms]
    german = WhisperRecogniser(model, language="de").transcribe(waveforms)
    assert german != alone
    with pytest.raises(InputError, match="'fr' is not among .*: de, en"):
        WhisperRecogniser(model, language="fr").transcribe(waveforms[:1])


def test_whisper_hears_30_seconds_and_says_what_it_cut(tmp_path: Path) -> None:
    recogniser = WhisperRecogniser(_whisper(tmp_path / "model", multilingual=False), batch_size=2)
    long = np.random.default_rng(0).normal(0, 0.1, 31 * 16000).astype(np.float32)
    cut, first = recogniser.transcribe([long, long[: 30 * 16000]])
    assert cut == first and recogniser.num_cut == 1
    with pytest.raises(InputError, match="writes English down"):
        WhisperRecogniser(recogniser.source, language="de").transcribe([long[:100]])


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_models_are_never_downloaded(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"recogniser {name} needs recogniser_model"):
        make_recogniser(RecogniserSettings(name))
    recogniser = make_recogniser(RecogniserSettings(name, str(tmp_path / "gone")))
    with pytest.raises(InputError, match="on this machine"):
        recogniser.transcribe([np.zeros(100, np.float32)])
    with pytest.raises(InputError, match="neither a folder with a model"):
        refuse_absent(RecogniserSettings(name, str(tmp_path / "gone")))
    make = {
        "wav2vec2": lambda: _wav2vec2(tmp_path / "here", "layer"),
        "whisper": lambda: _whisper(tmp_path / "here", True),
    }
    refuse_absent(RecogniserSettings(name, make[name]()))
