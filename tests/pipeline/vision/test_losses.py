"""What reconstructions are judged by: LPIPS and its file layouts, the patch discriminator, the losses by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import InputError
from pipeline.vision.discriminator import PatchDiscriminator, check_size, discriminator_loss, generator_loss
from pipeline.vision.losses import Adversary, Criterion, LossWeights, logit_laplace_loss
from pipeline.vision.lpips import LPIPS, _unit, frechet_distance, load_lpips, perceptual_distance
from pipeline.vision.vit_vqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig

# Torchvision's VGG16: numbers of the convolutions in `features`, and their channels.
VGG = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)} | {
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)
}  # fmt: skip
SLICES = {1: range(4), 2: range(4, 9), 3: range(9, 16), 4: range(16, 23), 5: range(23, 30)}
WIDTHS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def vgg() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for number, (num_in, num_out) in VGG.items():
        weight = torch.randn(num_out, num_in, 3, 3, generator=generator)
        found[f"features.{number}.weight"] = weight * math.sqrt(2 / (9 * num_in))
        found[f"features.{number}.bias"] = 0.1 * torch.randn(num_out, generator=generator)
    return found


@pytest.fixture(scope="module")
def heads() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for n, width in enumerate(WIDTHS)}


@pytest.fixture(scope="module")
def network(vgg: dict[str, torch.Tensor], heads: dict[str, torch.Tensor], tmp_path_factory) -> LPIPS:
    path = tmp_path_factory.mktemp("lpips") / "all.safetensors"
    save_file({**vgg, **heads}, path)
    return load_lpips(path)


def _pictures(number: int, side: int = 32) -> torch.Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(side))


def _by_hand(vgg: dict[str, torch.Tensor], heads: dict[str, torch.Tensor], first: torch.Tensor, second: torch.Tensor):
    """LPIPS written out from its paper, for one pair in [-1, 1]."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = 0.0
    xs = [(image - shift[:, None, None]) / scale[:, None, None] for image in (first, second)]
    for head, numbers in enumerate(([0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28])):
        for number in numbers:
            xs = [
                F.relu(F.conv2d(x, vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"], padding=1))
                for x in xs
            ]
        unit = [x / (x.pow(2).sum(0).sqrt() + 1e-10) for x in xs]
        weights = heads[f"lin{head}.model.1.weight"][0]
        total += float(((unit[0] - unit[1]).pow(2) * weights).sum(0).mean())
        xs = [F.max_pool2d(x, 2) for x in xs]
    return total


def test_lpips_is_its_papers_formula(network, vgg, heads):
    first, second = (2 * _pictures(2) - 1).split(1)
    assert float(network(first, first)) == 0
    assert float(network(first, second)) == pytest.approx(_by_hand(vgg, heads, first[0], second[0]), rel=1e-4)
    both = network(torch.cat([first, second]), torch.cat([second, first]))
    torch.testing.assert_close(both[0], both[1])
    assert float(perceptual_distance(network, (first + 1) / 2, (second + 1) / 2)) == pytest.approx(float(both[0]))


def test_lpips_passes_gradients_and_learns_nothing(network):
    image = _pictures(1).requires_grad_()
    perceptual_distance(network, image, torch.zeros_like(image)).backward()
    assert float(image.grad.abs().sum()) > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.train().training


def test_where_no_channel_is_active_the_gradient_is_finite():
    activations = torch.rand(1, 4, 2, 2)
    activations[..., 0, 0] = 0
    activations.requires_grad_()
    unit = _unit(activations)
    (unit - 0.5).square().sum().backward()
    assert torch.isfinite(activations.grad).all() and torch.equal(unit[..., 0, 0], torch.zeros(1, 4))
    lengths = unit.detach().square().sum(dim=1).sqrt()[0]
    torch.testing.assert_close(lengths, torch.tensor([[0.0, 1.0], [1.0, 1.0]]))


@pytest.mark.parametrize("layout", ["two files", "torch.save", "taming", "vqgan"])
def test_every_published_layout_is_read(network, vgg, heads, tmp_path: Path, layout: str):
    source = tmp_path / "weights"
    slices = {
        f"net.slice{next(s for s, r in SLICES.items() if int(name.split('.')[1]) in r)}{name[8:]}": value
        for name, value in vgg.items()
    }
    taming = {**slices, **heads, "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    if layout == "two files":
        source.mkdir()
        # Torchvision's file carries the classifier too.
        torch.save({**vgg, "classifier.6.bias": torch.zeros(1000)}, source / "vgg16.pth")
        torch.save(heads, source / "vgg.pth")
    elif layout == "torch.save":
        source = tmp_path / "all.pt"
        torch.save({**vgg, **heads}, source)
    elif layout == "taming":
        source = tmp_path / "lpips.safetensors"
        save_file(taming, source)
    else:
        source = tmp_path / "last.ckpt"
        state = {f"loss.perceptual_loss.{name}": value for name, value in taming.items()}
        torch.save({"state_dict": {**state, "encoder.conv_in.weight": torch.zeros(2)}}, source)
    loaded = load_lpips(source)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_weights_that_do_not_fit_are_refused_by_name(vgg, heads, tmp_path: Path):
    with pytest.raises(InputError, match="nothing.pth.*No such file|nothing.pth: no such file"):
        load_lpips(tmp_path / "nothing.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no weights in this folder"):
        load_lpips(tmp_path / "empty")
    path = tmp_path / "part.safetensors"
    save_file(vgg, path)
    with pytest.raises(InputError, match=r"part.safetensors: its weights do not fit: missing heads.0.*linN.model.1"):
        load_lpips(path)
    save_file({**vgg, **heads, "lin2.model.1.weight": torch.zeros(1, 128, 1, 1)}, path)
    with pytest.raises(InputError, match=r"heads.2 \(1, 128, 1, 1\) instead of \(1, 256, 1, 1\)"):
        load_lpips(path)


def test_pictures_too_small_are_refused(network):
    with pytest.raises(InputError, match="8 x 8 are too small for LPIPS"):
        perceptual_distance(network, _pictures(1, 8), _pictures(1, 8))
    with pytest.raises(InputError, match="16 x 16 are too small.*lower discriminator_layers"):
        check_size((16, 16), 3)
    check_size((16, 16), 2)
    assert PatchDiscriminator(2, 4)(_pictures(1, 16)).shape == (1, 1, 2, 2)


def test_the_discriminator_has_tamings_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in PatchDiscriminator().state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {"main.0.weight": (64, 3, 4, 4), "main.0.bias": (64,)}
    for number, (num_in, num_out) in {2: (64, 128), 5: (128, 256), 8: (256, 512)}.items():
        expected[f"main.{number}.weight"] = (num_out, num_in, 4, 4)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"main.{number + 1}.{name}"] = (num_out,)
        expected[f"main.{number + 1}.num_batches_tracked"] = ()
    expected |= {"main.11.weight": (1, 512, 4, 4), "main.11.bias": (1,)}
    assert shapes == expected
    # The 2,764,737 of pix2pix' PatchGAN have biases in place of batch norm's two weights a channel.
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_764_737 + 128 + 256 + 512
    # 30 x 30 scores of 70 x 70 pixels each.
    assert PatchDiscriminator()(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_adversarial_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-0.5, 1.0])
    assert float(discriminator_loss(real, fake, "hinge")) == pytest.approx(0.5 * (0.25 + (0.5 + 2.0) / 2))
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, -0.5, -0.5, 1.0)]
    expected = 0.5 * (sum(softplus[:2]) / 2 + sum(softplus[2:]) / 2)
    for kind in ("vanilla", "non_saturating"):
        assert float(discriminator_loss(real, fake, kind)) == pytest.approx(expected)
    assert float(generator_loss(fake, "hinge")) == float(generator_loss(fake, "vanilla")) == -0.25
    expected = (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-1.0))) / 2
    assert float(generator_loss(fake, "non_saturating")) == pytest.approx(expected)
    with pytest.raises(InputError, match="'wasserstein'; one of hinge"):
        generator_loss(fake, "wasserstein")


def test_logit_laplace_is_a_likelihood_and_lowest_at_the_picture():
    x, y = 0.3, 0.8
    mapped = [0.8 * value + 0.1 for value in (x, y)]
    logits = [math.log(value / (1 - value)) for value in mapped]
    density = math.exp(-abs(logits[0] - logits[1])) / (2 * mapped[0] * (1 - mapped[0]))
    found = float(logit_laplace_loss(torch.tensor([y]), torch.tensor([x])))
    assert found == pytest.approx(-math.log(density), rel=1e-5)
    losses = [float(logit_laplace_loss(torch.tensor([value]), torch.tensor([x]))) for value in (0.2, 0.3, 0.4)]
    assert min(losses) == losses[1]
    # The density integrates to 1 over what values are mapped into (0, 1): an independent check of its constant.
    points = torch.linspace(0.0005, 0.9995, 4000, dtype=torch.float64)
    densities = torch.exp(-(torch.logit(points) - torch.logit(torch.tensor(0.7, dtype=torch.float64))).abs())
    assert float(torch.trapezoid(densities / (2 * points * (1 - points)), points)) == pytest.approx(1, abs=0.01)


def _criterion(network: LPIPS | None = None, **fields: float | Adversary) -> tuple[ViTVQGAN, Criterion]:
    torch.manual_seed(0)
    part = TransformerConfig(16, 1, 1, 16)
    model = ViTVQGAN(ViTVQGANConfig(32, 8, part, part, 16, 4))
    return model, Criterion(model, LossWeights(**fields), network)  # type: ignore[arg-type]


def test_the_sum_is_weighted_and_the_adaptive_weight_is_tamings(network):
    adversary = Adversary(weight=0.5, loss="hinge", layers=2, channels=4, adaptive=True)
    model, criterion = _criterion(network, l2=1.0, l1=0.1, logit_laplace=0.2, perceptual=0.3, adversary=adversary)
    images = _pictures(2)
    last: nn.Parameter = model.decoder.to_pixel[1].weight  # type: ignore[union-attr,assignment]
    rebuilt = model.decode(model.encode(images))
    total, found = criterion(rebuilt, images, last, 0)
    others = found["l2"] + 0.1 * found["l1"] + 0.2 * found["logit_laplace"] + 0.3 * found["perceptual"]
    pulls = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (others, found["adversarial"])]
    weight = 0.5 * pulls[0] / (pulls[1] + 1e-4)
    torch.testing.assert_close(found["adversarial_weight"], weight)
    torch.testing.assert_close(total, others + weight * found["adversarial"])
    total.backward()
    assert all(parameter.grad is None for parameter in criterion.discriminator.parameters())


def test_the_adversary_waits_for_its_start():
    model, criterion = _criterion(adversary=Adversary(start=3, layers=2, channels=4))
    images = _pictures(2)
    last: nn.Parameter = model.decoder.to_pixel[1].weight  # type: ignore[union-attr,assignment]
    before = [parameter.clone() for parameter in criterion.discriminator.parameters()]
    for step, waits in ((2, True), (3, False)):
        rebuilt = model.decode(model.encode(images))
        _, found = criterion(rebuilt, images, last, step)
        loss = criterion.train_discriminator(rebuilt, images, 1e-3, step)["discriminator"]
        assert (found["adversarial"].item() == 0) == waits and (loss.item() == 0) == waits
        after = list(criterion.discriminator.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == waits


def test_a_perceptual_loss_without_its_network_is_refused():
    with pytest.raises(InputError, match="perceptual_weights"):
        _criterion(perceptual=0.1)


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    first = torch.from_numpy(rng.normal(size=(4000, 3)))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + torch.tensor([3.0, 0, 4.0])) == pytest.approx(25, rel=1e-9)
    # Of one covariance scaled by 9 the distance is tr C (3 - 1)^2.
    trace = float(torch.trace(torch.cov(first.T)))
    scaled = (first - first.mean(0)) * 3 + first.mean(0)
    assert frechet_distance(first, scaled) == pytest.approx(4 * trace, rel=1e-9)
    # Against scipy's matrix square root, for covariances that do not commute.
    from scipy.linalg import sqrtm

    second = first @ torch.tensor([[1.0, 2, 0], [0, 1, 0.5], [0.3, 0, 2]], dtype=torch.float64)
    ours, theirs = torch.cov(first.T).numpy(), torch.cov(second.T).numpy()
    mean = float((first.mean(0) - second.mean(0)).square().sum())
    expected = mean + np.trace(ours + theirs - 2 * sqrtm(ours @ theirs).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(InputError, match="at least two"):
        frechet_distance(first[:1], first)


@pytest.mark.peer
@pytest.mark.parametrize("layers", [2, 3])
def test_the_discriminator_says_what_tamings_says(layers: int):
    peer = pytest.importorskip("taming.modules.discriminator.model")
    torch.manual_seed(0)
    theirs = peer.NLayerDiscriminator(input_nc=3, ndf=8, n_layers=layers)
    ours = PatchDiscriminator(layers, 8)
    ours.load_state_dict(theirs.state_dict())
    images = 2 * _pictures(2, 64) - 1
    torch.testing.assert_close(ours(images), theirs(images))  # batch statistics
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(images), theirs(images))  # running ones
