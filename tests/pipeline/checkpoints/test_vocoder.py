"""Unit HiFi-GANs in fairseq's format: the waveform is the generator's, whatever weight norm named its weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.vocoder import import_vocoder
from pipeline.errors import InputError
from pipeline.files import read_json, write_json
from pipeline.speech.hifigan import CodeHiFiGAN, HiFiGANConfig
from pipeline.speech.vocoder import load_vocoder
from tests.pipeline.checkpoints.hostile import WRAPPINGS, Payload

PREDICTOR = {
    "encoder_embed_dim": 128,
    "var_pred_hidden_dim": 128,
    "var_pred_kernel_size": 3,
    "var_pred_dropout": 0.5,
}
CONFIG: dict[str, Any] = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 64,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_embeddings": 100,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "dur_predictor_params": PREDICTOR,
    "sampling_rate": 16000,
    "f0": False,
    # Keys of training and keys that nobody here knows.
    "learning_rate": 0.0002,
    "input_training_file": "/checkpoint/someone/train.txt",
    "dist_config": {"dist_backend": "nccl"},
    "key_of_the_future": 1,
}


def generator(**changes: Any) -> CodeHiFiGAN:
    torch.manual_seed(0)
    network = CodeHiFiGAN(HiFiGANConfig.from_dict({**CONFIG, **changes})).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return network


def speak(vocoder: Any, **options: Any) -> torch.Tensor:
    return torch.from_numpy(vocoder.synthesize([[3, 1, 99, 4, 0]], **options)[0])


@pytest.mark.parametrize("names", ["weight_g", "original0"])
@pytest.mark.parametrize("changes", [{}, {"multispkr": "_", "model_in_dim": 256}, {"dur_predictor_params": None}])
def test_the_waveform_is_the_generators(tmp_path: Path, names: str, changes: dict[str, Any]) -> None:
    network = generator(**changes)
    state = network.state_dict()
    if names == "original0":
        state = {
            name.replace("weight_g", "parametrizations.weight.original0").replace(
                "weight_v", "parametrizations.weight.original1"
            ): value
            for name, value in state.items()
        }
    torch.save({"generator": {**state, "unused.weight": torch.zeros(2)}}, tmp_path / "g_00500000")
    values = {**CONFIG, **changes}
    del values["num_embeddings"]
    write_json(tmp_path / "config.json", values)
    import_vocoder(tmp_path / "g_00500000", tmp_path / "config.json", tmp_path / "out", units_fingerprint="abc")
    vocoder = load_vocoder(tmp_path / "out", units_fingerprint="abc", num_units=100)
    given = None if network.dur_predictor is not None else torch.tensor([1, 2, 1, 1, 3])
    speaker = 7 if network.spkr is not None else None
    expected = network.synthesize(torch.tensor([3, 1, 99, 4, 0]), given, speaker)
    durations = None if given is None else [given.numpy()]
    torch.testing.assert_close(speak(vocoder, durations=durations, speaker=speaker), expected, atol=1e-6, rtol=0)
    assert read_json(tmp_path / "out/provenance.json")["notes"] == ["left out: unused.weight"]


def test_units_of_another_codebook_are_refused(tmp_path: Path) -> None:
    torch.save({"generator": generator().state_dict()}, tmp_path / "g")
    write_json(tmp_path / "config.json", CONFIG)
    with pytest.raises(InputError, match="speaks 100 units, the codebook has 200"):
        import_vocoder(tmp_path / "g", tmp_path / "config.json", tmp_path / "out", num_units=200)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_hostile_file_is_refused(tmp_path: Path, wrapping: str) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    WRAPPINGS[wrapping](tmp_path / "g", Payload(tmp_path / "ran"))
    with pytest.raises(InputError, match="Nothing was run"):
        import_vocoder(tmp_path / "g", tmp_path / "config.json", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_what_cannot_be_built_is_named(tmp_path: Path) -> None:
    state = generator().state_dict()
    torch.save({"generator": state}, tmp_path / "g")
    write_json(tmp_path / "config.json", {**CONFIG, "f0": True})
    with pytest.raises(InputError, match="'f0' is set"):
        import_vocoder(tmp_path / "g", tmp_path / "config.json", tmp_path / "out")
    write_json(tmp_path / "config.json", {**CONFIG, "upsample_initial_channel": 128})
    with pytest.raises(InputError, match="do not fit.*conv_pre"):
        import_vocoder(tmp_path / "g", tmp_path / "config.json", tmp_path / "out")
    torch.save({"generator": {"conv_pre.bias": torch.zeros(3)}}, tmp_path / "g")
    with pytest.raises(InputError, match="not a unit HiFi-GAN"):
        import_vocoder(tmp_path / "g", tmp_path / "config.json", tmp_path / "out")
