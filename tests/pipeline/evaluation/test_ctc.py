"""The character recogniser: the bundled weights, the features, and one step of its recipe."""

from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch

from pipeline.corpora.world.espeak import synthesize
from pipeline.errors import InputError
from pipeline.evaluation.ctc import (
    BUNDLED,
    CharacterCTC,
    CTCConfig,
    CTCRecogniser,
    greedy_text,
    load_ctc,
    log_mel,
    normalise_features,
    save_ctc,
)
from pipeline.evaluation.ctc_pretraining import CTCRecipe, griffin_lim, held_out_captions, pretrain_ctc
from pipeline.files import write_json


def test_held_out_captions_are_spelled() -> None:
    texts = held_out_captions(16, seed=4)
    heard = CTCRecogniser().transcribe([synthesize(text, "en-us+m3").waveform for text in texts])
    assert jiwer.wer(texts, heard) <= 0.03


def test_it_has_no_vocabulary() -> None:
    heard = CTCRecogniser().transcribe([synthesize("the pencil laughed").waveform, np.zeros(0, np.float32)])
    assert (
        heard[0]
        and heard[0] != "the pencil laughed"[: len(heard[0])]
        or jiwer.cer("the pencil laughed", heard[0]) < 0.6
    )
    assert set(heard[0]) <= set(" 'abcdefghijklmnopqrstuvwxyz")


def test_the_bundled_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 3_000_000
    assert (BUNDLED / "README.md").exists()


def test_greedy_text_merges_and_drops() -> None:
    assert greedy_text([0, 3, 3, 0, 3, 4, 4, 1, 1, 0, 1, 5, 0]) == "aab c"
    assert greedy_text([0, 0]) == ""


def test_masked_frames_are_as_if_not_there() -> None:
    torch.manual_seed(0)
    model = CharacterCTC(CTCConfig(width=16, dilations=(1, 2))).eval()
    short, long = torch.randn(30, 64), torch.randn(44, 64)
    batch = torch.zeros(2, 44, 64)
    batch[0, :30], batch[1] = short, long
    mask = torch.arange(44) < torch.tensor([[30], [44]])
    together = model(normalise_features(batch, mask), mask)
    alone = model(normalise_features(short[None]))
    assert torch.allclose(together[:1, :15], alone, atol=1e-5)


def test_loudness_and_faint_noise_matter_little() -> None:
    waveform = torch.from_numpy(synthesize("a red star").waveform)
    noise = 1e-4 * torch.randn(len(waveform), generator=torch.Generator().manual_seed(0))
    plain, other = (normalise_features(log_mel(w)[None]) for w in (waveform, 0.3 * (waveform + noise)))
    assert (plain - other).abs().mean() < 0.02


def test_griffin_lim_keeps_the_length_and_what_is_said() -> None:
    waveform = synthesize("the large green square is below the small red circle").waveform
    copy = griffin_lim(torch.from_numpy(waveform), seed=0)
    assert copy.shape == waveform.shape
    assert (
        jiwer.wer("the large green square is below the small red circle", CTCRecogniser().transcribe([copy.numpy()])[0])
        <= 0.2
    )


def test_the_recipe_runs_and_repeats_itself(tmp_path: Path) -> None:
    recipe = CTCRecipe(num_utterances=8, num_resynthesised=2, num_steps=2, batch_size=4, num_held_out=2)
    lines: list[str] = []
    figures = [pretrain_ctc(tmp_path / name, recipe, lines.append) for name in ("a", "b")]
    assert figures[0] == figures[1] and "wer_captions_griffin_lim" in figures[0]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert load_ctc(tmp_path / "a").config == CTCConfig()


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    save_ctc(CharacterCTC(CTCConfig(width=8, dilations=(1,))), tmp_path)
    assert load_ctc(tmp_path).config.width == 8
    write_json(tmp_path / "config.json", {"alphabet": "xyz"})
    with pytest.raises(InputError, match="config.json"):
        load_ctc(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_ctc(tmp_path / "nowhere")
