"""The trainings' checkpoints are named by code and weights too: no training goes on from what another one left."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import runner
from pipeline.speech.vocoder_crops import make_example
from pipeline.vision.vit_vqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from stages import train, vocoder, vqgan
from stages._cli import StageContext
from stages._settings import Settings


def _train(context: StageContext, weights: Path) -> str:
    return train._run_name(train.Params(init=str(weights.parent)), context, "data")


def _vocoder(context: StageContext, weights: Path) -> str:
    params = vocoder.Params(kind="hifigan", start=str(weights.parent), steps=2000)
    example = make_example(np.array([1, 2]), np.array([2, 2]), np.zeros(1280, np.float32), 320)
    found = vocoder._checkpoint(params, context, [example], vocoder._training_settings(params))
    assert found is not None and found.parent == context.settings.scratch_dir
    return found.name


def _vqgan(context: StageContext, weights: Path) -> str:
    part = TransformerConfig(16, 1, 1, 16)
    model = ViTVQGAN(ViTVQGANConfig(16, 8, part, part, 8, 4))
    for parameter in model.parameters():
        parameter.data.zero_()
    params = vqgan.Params(source="train", perceptual_weights=str(weights))
    return vqgan._checkpoint(model, "data", params, context).name


@pytest.mark.parametrize("name", [_train, _vocoder, _vqgan])
def test_other_code_or_other_weights_are_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Callable[[StageContext, Path], str]
) -> None:
    context = StageContext("stage", Settings(1, 1, "cpu", "loky", tmp_path / "scratch", tmp_path / "logs"))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = name(context, weights)
    assert name(context, weights) == first
    weights.write_bytes(b"two")
    second = name(context, weights)
    assert second != first
    monkeypatch.setattr(runner, "NUMERIC_LIBRARIES", ("numpy",))  # as a file of its package would
    assert name(context, weights) not in (first, second)
