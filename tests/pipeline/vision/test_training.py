"""Training of the tokenizer: it learns, uses its codes, resumes exactly; the bundled one keeps its promise."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline.corpora.world.draw import render
from pipeline.corpora.world.scenes import sample_scene
from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.vision.encode import batch_sampler
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
