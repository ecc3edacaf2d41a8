"""Training of the tokenizer: it learns, uses its codes, resumes exactly; the bundled one keeps its promise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline.corpora.world.draw import render
from pipeline.corpora.world.scenes import sample_scene
from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.vision.codebook import follow
from pipeline.vision.encode import batch_sampler
from pipeline.vision.losses import Adversary
from pipeline.vision.lpips import LPIPS
from pipeline.vision.pretrain import pretrain_vqgan
from pipeline.vision.training import VQGANTraining, measure, train_vit_vqgan
from pipeline.vision.transforms import image_to_tensor
from pipeline.vision.vit_vqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig, load_vit_vqgan

BUNDLED = Path(pipeline.__file__).parent / "bundled" / "vit_vqgan"
SETTINGS = VQGANTraining(
    30, learning_rate=4e-3, warmup_steps=5, continuous_steps=10, restart_every=5, log_every=5,
    checkpoint_every=12,
)  # fmt: skip


def scenes(split: str, number: int, size: int) -> torch.Tensor:
    rng = np.random.default_rng(7)
    return torch.stack([image_to_tensor(render(sample_scene(rng, split), rng), size) for _ in range(number)])


def tiny() -> ViTVQGAN:
    torch.manual_seed(1)
    part = TransformerConfig(32, 1, 1, 32)
    return ViTVQGAN(ViTVQGANConfig(32, 8, part, part, 64, 8))


def pictures() -> np.ndarray:
    return (scenes("train", 32, 32) * 255).byte().numpy()


def test_training_lowers_the_error_and_keeps_codes_in_use():
    images, model = pictures(), tiny()
    history = train_vit_vqgan(model, batch_sampler(images, 8, 0), SETTINGS, progress=False)
    assert history[-1]["l2"] < history[0]["l2"] / 5 and not model.training
    figures, counts = measure(model, torch.from_numpy(images).float().div(255).split(8))
    assert figures["num_images"] == 32 and counts.sum() == 32 * 16 and counts.shape == (64,)
    assert figures["usage"] > 0.3 and 1 < figures["perplexity"] <= 64 and figures["psnr"] > 8


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    sampler = batch_sampler(pictures(), 8, 0)
    unbroken, broken = tiny(), tiny()
    expected = train_vit_vqgan(unbroken, sampler, SETTINGS, progress=False)

    def dies(step: int) -> torch.Tensor:
        if step == 27:
            raise KeyboardInterrupt
        return sampler(step)

    with pytest.raises(KeyboardInterrupt):
        train_vit_vqgan(broken, dies, SETTINGS, checkpoint=tmp_path, progress=False)
    resumed = tiny()
    history = train_vit_vqgan(resumed, sampler, SETTINGS, checkpoint=tmp_path, progress=False)
    assert resumed.fingerprint == unbroken.fingerprint and history == expected
    with pytest.raises(InputError, match="other training settings"):
        train_vit_vqgan(tiny(), sampler, VQGANTraining(41), checkpoint=tmp_path, progress=False)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_kept(tmp_path):
    sampler = batch_sampler(pictures(), 8, 0)
    settings = replace(SETTINGS, log_every=100)  # only the checkpoint of step 12 looks at it
    with pytest.raises(InputError, match=r"not a number at step 11 \(l1, l2.*lower learning_rate"):
        train_vit_vqgan(
            *(tiny(), lambda step: sampler(step) * (float("nan") if step > 8 else 1), settings),
            checkpoint=tmp_path,
            progress=False,
        )
    assert not list(tmp_path.iterdir())


def test_the_recipe_runs_and_writes_a_card(tmp_path):
    figures = pretrain_vqgan(
        tmp_path, 6, batch_size=2, image_size=16, num_codes=32, dim=16, num_held_out=12, progress=False
    )
    assert set(figures) == {"scenes", "textures", "novel"}
    assert load_vit_vqgan(tmp_path).grid == (4, 4)
    assert "6 steps of 2 pictures, seed 0" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "reconstructions.png").stat().st_size > 0


def test_the_bundled_tokenizer_does_what_its_card_says():
    model = load_vit_vqgan(BUNDLED)
    claimed = read_json(BUNDLED / "config.json")["metadata"]["figures"]
    figures, _ = measure(model, scenes("test_novel", 48, 64).split(16))
    assert figures["psnr"] > claimed["novel"]["psnr"] - 1.0 and claimed["scenes"]["psnr"] >= 27
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 4e6


@pytest.fixture(scope="module")
def perceptual() -> LPIPS:
    torch.manual_seed(5)
    network = LPIPS()
    for head in network.heads:
        head.data.uniform_(0, 1)
    return network


EVERYTHING = replace(
    SETTINGS,
    steps=8,
    continuous_steps=2,
    logit_laplace_weight=0.1,
    perceptual_weight=0.1,
    adversary=Adversary(loss="hinge", start=3, layers=2, channels=4, adaptive=True),
    codebook_decay=0.9,
    average_decay=0.9,
    checkpoint_every=3,
    log_every=1,
)


def test_all_losses_together_train_log_and_resume_to_the_same_weights(tmp_path, perceptual):
    sampler = batch_sampler(pictures(), 4, 0)
    unbroken, broken, resumed = tiny(), tiny(), tiny()
    history = train_vit_vqgan(unbroken, sampler, EVERYTHING, perceptual=perceptual, progress=False)
    extra = {"logit_laplace", "perceptual", "adversarial", "adversarial_weight", "discriminator"}
    assert set(history[0]) == {"step", "l1", "l2", "codebook", "rate", "used"} | extra
    assert history[2]["discriminator"] == 0 < history[3]["discriminator"]
    assert history[-1]["l2"] < history[0]["l2"] and history[-1]["used"] > 0
    assert all(p.requires_grad for n, p in unbroken.named_parameters() if "pos_embedding" not in n)

    def dies(step: int) -> torch.Tensor:
        if step == 7:
            raise KeyboardInterrupt
        return sampler(step)

    with pytest.raises(KeyboardInterrupt):
        train_vit_vqgan(broken, dies, EVERYTHING, perceptual=perceptual, checkpoint=tmp_path, progress=False)
    again = train_vit_vqgan(resumed, sampler, EVERYTHING, perceptual=perceptual, checkpoint=tmp_path, progress=False)
    assert resumed.fingerprint == unbroken.fingerprint and again == history


def test_an_adversary_in_waiting_changes_nothing():
    sampler = batch_sampler(pictures(), 8, 0)
    plain, waiting = tiny(), tiny()
    short = replace(SETTINGS, steps=12)
    train_vit_vqgan(plain, sampler, short, progress=False)
    adversary = Adversary(start=100, layers=2, channels=4)
    train_vit_vqgan(waiting, sampler, replace(short, adversary=adversary), progress=False)
    assert plain.fingerprint == waiting.fingerprint


def test_following_codes_move_towards_their_vectors_and_others_stay():
    model = tiny()
    codes = torch.tensor([3, 3, 7])
    vectors = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    before = torch.nn.functional.normalize(model.quantizer.embedding.weight.detach().clone(), dim=1)
    follow(model, vectors, codes, 0.9)
    after = model.quantizer.embedding.weight.detach()
    for code, mean in ((3, vectors[:2].sum(0)), (7, vectors[2])):
        moved = 0.9 * before[code] + 0.1 * mean / mean.norm()
        torch.testing.assert_close(after[code], moved / moved.norm())
    assert torch.equal(after[4], tiny().quantizer.embedding.weight.detach()[4])


def test_the_average_is_that_of_the_steps():
    sampler = batch_sampler(pictures(), 8, 0)
    weights = []

    def watched(step: int) -> torch.Tensor:
        weights.append(model.pre_quant.weight.detach().clone())
        return sampler(step)

    model = tiny()
    settings = VQGANTraining(4, average_decay=0.5, continuous_steps=0, warmup_steps=1)
    train_vit_vqgan(model, watched, settings, fresh_codebook=False, progress=False)
    last = tiny()
    train_vit_vqgan(last, sampler, replace(settings, average_decay=0.0), fresh_codebook=False, progress=False)
    mean = weights[0]
    for step, after in enumerate([*weights[1:], last.pre_quant.weight.detach()]):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * after
    torch.testing.assert_close(model.pre_quant.weight.detach(), mean)


def test_restarts_can_be_left_out_and_fp16_is_refused():
    sampler = batch_sampler(pictures(), 8, 0)
    used = []
    for every in (0, 5):
        model = tiny()
        train_vit_vqgan(model, sampler, replace(SETTINGS, restart_every=every), progress=False)
        used.append(measure(model, torch.from_numpy(pictures()).float().div(255).split(8))[0]["usage"])
    assert used[0] < used[1]
    with pytest.raises(InputError, match="fp32 or bf16"):
        train_vit_vqgan(tiny(), sampler, replace(SETTINGS, precision="fp16"), progress=False)


def test_bf16_trains_the_same_weights_in_float32():
    model, sampler = tiny(), batch_sampler(pictures(), 8, 0)
    history = train_vit_vqgan(model, sampler, replace(SETTINGS, precision="bf16"), progress=False)
    exact = train_vit_vqgan(tiny(), sampler, replace(SETTINGS, steps=1), progress=False)
    assert history[0]["l2"] != exact[0]["l2"] and history[0]["l2"] == pytest.approx(exact[0]["l2"], rel=0.02)
    assert history[-1]["l2"] < history[0]["l2"] / 3
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.gpu
def test_gradients_on_a_gpu_are_fp32_too(cuda):
    """Not TF32, which PyTorch allows in convolutions wherever nobody forbids it."""
    model, seen = tiny().to(cuda), []
    model.pre_quant.weight.register_hook(lambda _: seen.append(torch.backends.cudnn.allow_tf32))
    train_vit_vqgan(model, batch_sampler(pictures(), 8, 0), replace(SETTINGS, steps=1), progress=False)
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_perceptual_figures_come_with_the_network_only(perceptual):
    images = scenes("train", 4, 32).split(2)
    plain, _ = measure(tiny().eval(), images)
    figures, _ = measure(tiny().eval(), images, perceptual)
    assert set(figures) - set(plain) == {"lpips", "frechet_vgg"}
    assert figures["lpips"] > 0 and figures["frechet_vgg"] > 0 and figures["psnr"] == plain["psnr"]
