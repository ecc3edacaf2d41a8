"""HiFi-GAN's discriminators: the published names, shapes and counts; spectral norm as torch has it."""

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.speech.discriminators import PERIODS, Discriminators

# (input channels of a group, output channels, kernel) of every layer in Kong et al. 2020, appendix and code.
PERIOD_LAYERS = [(1, 32, 5), (32, 128, 5), (128, 512, 5), (512, 1024, 5), (1024, 1024, 5), (1024, 1, 3)]
SCALE_LAYERS = [
    *((1, 128, 15), (32, 128, 41), (8, 256, 41), (16, 512, 41)),
    *((32, 1024, 41), (64, 1024, 41), (1024, 1024, 5), (1024, 1, 3)),
]


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def layers(prefix: str, sizes: list[tuple[int, int, int]], spectral: bool, tail: tuple[int, ...]) -> None:
        for index, (num_in, num_out, kernel) in enumerate(sizes):
            name = f"{prefix}.conv_post" if index == len(sizes) - 1 else f"{prefix}.convs.{index}"
            weight = (num_out, num_in, kernel, *tail)
            shapes[f"{name}.bias"] = (num_out,)
            if spectral:
                shapes[f"{name}.weight_orig"] = weight
                shapes[f"{name}.weight_u"], shapes[f"{name}.weight_v"] = (num_out,), (num_in * kernel,)
            else:
                shapes[f"{name}.weight_v"] = weight
                shapes[f"{name}.weight_g"] = (num_out, *(1,) * (len(weight) - 1))

    for number in range(len(PERIODS)):
        layers(f"mpd.discriminators.{number}", PERIOD_LAYERS, False, (1,))
    for number in range(3):
        layers(f"msd.discriminators.{number}", SCALE_LAYERS, number == 0, ())
    return shapes


def test_names_shapes_and_counts_are_those_of_the_paper() -> None:
    full = Discriminators()
    assert {name: tuple(value.shape) for name, value in full.state_dict().items()} == _expected_shapes()

    def weights_and_biases(layers: list[tuple[int, int, int]]) -> int:
        return sum(num_in * num_out * kernel + num_out for num_in, num_out, kernel in layers)

    # Plain convolutions, as they are when the normalisation is folded in: 41.1 and 29.6 million.
    periods, scales = 5 * weights_and_biases(PERIOD_LAYERS), 3 * weights_and_biases(SCALE_LAYERS)
    assert (periods, scales) == (41_092_165, 29_610_627)
    # Weight norm adds a length an output channel.
    lengths = {"mpd": 5 * 2721, "msd": 2 * 4097}
    for name, plain in (("mpd", periods), ("msd", scales)):
        assert sum(p.numel() for p in getattr(full, name).parameters()) == plain + lengths[name]


def test_judgements_have_the_lengths_that_strides_give() -> None:
    torch.manual_seed(0)
    discriminators = Discriminators(128)
    judged = discriminators(torch.rand(2, 2563) - 0.5)
    assert len(judged) == 8
    for period, (scores, activations) in zip(PERIODS, judged, strict=False):
        rows = -(-2563 // period)
        for _ in range(4):
            rows = -(-rows // 3)
        assert scores.shape == (2, rows * period) and len(activations) == 6
    for scale, (scores, activations) in enumerate(judged[5:]):
        length = 2563
        for _ in range(scale):
            length = (length + 4 - 4) // 2 + 1
        for stride in (2, 2, 4, 4):
            length = (length - 1) // stride + 1
        assert scores.shape == (2, length) and len(activations) == 8


def test_the_periods_see_the_samples_that_lie_a_period_apart() -> None:
    torch.manual_seed(0)
    discriminator = Discriminators(128).mpd.discriminators[1]
    signal = torch.rand(1, 1, 600)
    changed = signal.clone()
    changed[0, 0, 301] += 1  # 301 = 1 modulo 3: the second column only
    first, second = (discriminator(x)[0].reshape(-1, 3) for x in (signal, changed))
    assert torch.equal(first[:, [0, 2]], second[:, [0, 2]]) and not torch.equal(first[:, 1], second[:, 1])


def test_spectral_norm_is_torchs() -> None:
    torch.manual_seed(0)
    ours = Discriminators(128).msd.discriminators[0].convs[2]
    theirs = nn.utils.spectral_norm(nn.Conv1d(16, 32, 41, 2, groups=16, padding=20))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 16, 90)
    for _ in range(3):  # each training step moves the estimate
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.weight_u, theirs.weight_u)
    # Two passes before one backward pass, as a training step has them.
    (ours(x).square().sum() + ours(x).sum()).backward()
    theirs(x), theirs(x)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_width_that_groups_cannot_share_is_refused() -> None:
    for channels in (64, 1000):
        with pytest.raises(InputError, match="discriminator_channels.*multiple of 128"):
            Discriminators(channels)
