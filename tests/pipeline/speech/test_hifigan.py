"""The unit HiFi-GAN: names and shapes of fairseq's CodeHiFiGAN, lengths, weight normalisation."""

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.speech.hifigan import CodeHiFiGAN, HiFiGANConfig, small_config

PREDICTOR = {
    "encoder_embed_dim": 128,
    "var_pred_hidden_dim": 128,
    "var_pred_kernel_size": 3,
    "var_pred_dropout": 0.5,
}
# What a published config.json holds, training keys included.
HUBERT100: dict[str, Any] = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_embeddings": 100,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "dur_prediction_weight": 1.0,
    "dur_predictor_params": PREDICTOR,
    "sampling_rate": 16000,
    "f0": False,
    "learning_rate": 0.0002,
    "dist_config": {"dist_backend": "nccl"},
}


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    """The whole state dict of the hubert100 vocoder, from the names and shapes of the published one."""
    shapes: dict[str, tuple[int, ...]] = {"dict.weight": (100, 128)}

    def normed(name: str, weight: tuple[int, int, int], num_out: int) -> None:
        shapes[f"{name}.weight_v"] = weight
        shapes[f"{name}.weight_g"] = (weight[0], 1, 1)
        shapes[f"{name}.bias"] = (num_out,)

    normed("conv_pre", (512, 128, 7), 512)
    ups = [(512, 256, 11), (256, 128, 8), (128, 64, 8), (64, 32, 4), (32, 16, 4)]
    for level, weight in enumerate(ups):
        normed(f"ups.{level}", weight, weight[1])
        for position, kernel in enumerate((3, 7, 11)):
            for group in ("convs1", "convs2"):
                for layer in range(3):
                    name = f"resblocks.{level * 3 + position}.{group}.{layer}"
                    normed(name, (weight[1], weight[1], kernel), weight[1])
    normed("conv_post", (1, 16, 7), 1)
    for name in ("conv1.0", "conv2.0"):
        shapes[f"dur_predictor.{name}.weight"] = (128, 128, 3)
        shapes[f"dur_predictor.{name}.bias"] = (128,)
    for name in ("ln1", "ln2"):
        shapes[f"dur_predictor.{name}.weight"] = shapes[f"dur_predictor.{name}.bias"] = (128,)
    shapes["dur_predictor.proj.weight"], shapes["dur_predictor.proj.bias"] = (1, 128), (1,)
    return shapes


def test_state_dict_has_the_published_names_and_shapes() -> None:
    network = CodeHiFiGAN(HiFiGANConfig.from_dict(HUBERT100))
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes == _expected_shapes()


def test_speaker_embedding_has_its_published_name() -> None:
    config = HiFiGANConfig.from_dict(
        {**HUBERT100, "upsample_initial_channel": 32, "multispkr": "_", "model_in_dim": 256}
    )
    network = CodeHiFiGAN(config).eval()
    assert network.state_dict()["spkr.weight"].shape == (200, 128)
    assert network.state_dict()["conv_pre.weight_v"].shape == (32, 256, 7)
    units = torch.arange(9)
    ones = torch.ones(9, dtype=torch.long)
    assert not torch.equal(network.synthesize(units, ones, 0), network.synthesize(units, ones, 1))


@pytest.mark.parametrize("hop", [320, 640])
def test_a_frame_is_exactly_hop_samples(hop: int) -> None:
    config = small_config(30, 32, hop, 16000)
    assert config.hop == hop
    network = CodeHiFiGAN(config).eval()
    for num_frames in (1, 2, 17):
        assert network(torch.zeros(1, num_frames, dtype=torch.long)).shape == (1, num_frames * hop)
    units = torch.tensor([3, 4, 5])
    assert network.synthesize(units, torch.tensor([2, 1, 4])).shape == (7 * hop,)
    predicted = network.synthesize(units)
    assert predicted.shape[0] >= 3 * hop and predicted.shape[0] % hop == 0


def test_weight_g_and_weight_v_mean_what_torchs_weight_norm_means() -> None:
    torch.manual_seed(0)
    network = CodeHiFiGAN(small_config(10, 32, 320, 16000))
    for ours, theirs in (
        (network.conv_pre, nn.Conv1d(128, 32, 7, padding=3)),
        (network.ups[0], nn.ConvTranspose1d(32, 16, 11, stride=5, padding=3)),
    ):
        normed = nn.utils.parametrizations.weight_norm(theirs)
        state = {name: torch.randn_like(value) for name, value in ours.state_dict().items()}
        ours.load_state_dict(state)
        normed.load_state_dict(state)  # torch reads the old names through a hook
        x = torch.randn(2, theirs.in_channels, 12)
        torch.testing.assert_close(ours(x), normed(x), atol=1e-5, rtol=1e-5)


def test_unsupported_and_inconsistent_configs_are_refused_by_key() -> None:
    with pytest.raises(InputError, match="'f0'"):
        HiFiGANConfig.from_dict({**HUBERT100, "f0": True})
    with pytest.raises(InputError, match="'model_in_dim'"):
        HiFiGANConfig.from_dict({**HUBERT100, "multispkr": "single"})
    silent = {key: value for key, value in HUBERT100.items() if key != "dur_predictor_params"}
    network = CodeHiFiGAN(HiFiGANConfig.from_dict({**silent, "upsample_initial_channel": 32}))
    with pytest.raises(InputError, match="give durations"):
        network.synthesize(torch.tensor([1, 2]))


@pytest.mark.peer
@pytest.mark.parametrize("speakers", [False, True])
@pytest.mark.parametrize("predict", [False, True])
def test_it_says_what_fairseqs_generator_says(speakers: bool, predict: bool) -> None:
    peer = pytest.importorskip("fairseq.models.text_to_speech.codehifigan")
    config = {**HUBERT100, "upsample_initial_channel": 64}
    if speakers:
        config |= {"multispkr": "_", "model_in_dim": 256}
    torch.manual_seed(0)
    theirs = peer.CodeGenerator(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    ours = CodeHiFiGAN(HiFiGANConfig.from_dict(config)).eval()
    ours.load_state_dict(theirs.state_dict())
    units = torch.randint(0, 100, (1, 40))
    given = {"spkr": torch.tensor([[3]])} if speakers else {}
    with torch.no_grad():
        expected = theirs(code=units, dur_prediction=predict, **given)[0, 0]
    durations = None if predict else torch.ones(40, dtype=torch.long)
    spoken = ours.synthesize(units[0], durations, 3 if speakers else None)
    torch.testing.assert_close(spoken, expected, atol=1e-6, rtol=1e-5)
