"""The recipe of the bundled image tokenizer: a small ViT-VQGAN learns the wider drawn world.

Reads nothing; writes a folder of `config.json`, `model.safetensors`, `README.md` (the model card) and
`reconstructions.png`. Every picture is a function of the seed and its number.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.corpora.world.draw import render, render_wide
from pipeline.corpora.world.scenes import sample_scene, sample_wide
from pipeline.corpora.world.textures import sample_texture
from pipeline.files import atomic_path, write_text
from pipeline.vision.report import reconstruction_grid
from pipeline.vision.training import VQGANTraining, measure, train_vit_vqgan
from pipeline.vision.transforms import image_to_tensor
from pipeline.vision.vit_vqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig

PRETRAIN_STREAM, HELD_OUT_STREAM, NOVEL_STREAM = 0, 1, 2
_SCENE_SHARE = 0.7  # of the pictures; the others are textures


def picture(seed: int, index: int, size: int, stream: int = PRETRAIN_STREAM) -> Image.Image:
    """The picture of that number: a wide scene (seven in ten) or a texture, `size` x `size`."""
    rng = np.random.default_rng([seed, stream, index])
    if rng.random() < _SCENE_SHARE:
        return render_wide(sample_wide(rng), rng, size)
    return sample_texture(rng, size)


def pretrain_vqgan(
    out_dir: Path,
    steps: int = 5000,
    seed: int = 0,
    *,
    batch_size: int = 16,
    image_size: int = 64,
    patch_size: int = 4,
    num_codes: int = 1024,
    code_dim: int = 32,
    dim: int = 96,
    encoder_depth: int = 1,
    decoder_depth: int = 2,
    heads: int = 1,
    learning_rate: float = 2e-3,
    checkpoint: Path | None = None,
    num_held_out: int = 512,
    device: str = "cpu",
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train the tokenizer and write `out_dir`; the same arguments on the same machine give the same weights.

    checkpoint: a folder from which an interrupted run goes on, removed at the end. Returns figures: scenes of the
    wider world and textures never trained on, and the demo's scenes with combinations never trained on.
    """
    torch.manual_seed(seed)
    encoder = TransformerConfig(dim, encoder_depth, heads, 2 * dim)
    decoder = TransformerConfig(dim, decoder_depth, heads, 2 * dim)
    model = ViTVQGAN(ViTVQGANConfig(image_size, patch_size, encoder, decoder, num_codes, code_dim)).to(device)

    def batch_at(step: int) -> torch.Tensor:
        numbers = range(step * batch_size, (step + 1) * batch_size)
        return torch.stack([image_to_tensor(picture(seed, i, image_size), image_size) for i in numbers])

    settings = VQGANTraining(steps=steps, seed=seed, learning_rate=learning_rate, l1_weight=0.1)
    train_vit_vqgan(model, batch_at, settings, checkpoint=checkpoint, log=log, progress=progress)
    held_out = _held_out(seed, image_size, num_held_out)
    figures = {name: measure(model, images.split(64))[0] for name, images in held_out.items()}
    recipe = {"steps": steps, "seed": seed, "batch_size": batch_size, "learning_rate": learning_rate}
    model.save(out_dir, {"recipe": {**recipe, "data": "wider drawn world"}, "figures": figures})
    with atomic_path(out_dir / "reconstructions.png") as temporary:
        reconstruction_grid(model, torch.cat([part[:12] for part in held_out.values()])).save(temporary, "PNG")
    write_text(out_dir / "README.md", _card(model, recipe, figures))
    if checkpoint is not None:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return figures


def _held_out(seed: int, size: int, number: int) -> dict[str, torch.Tensor]:
    """Tensors [number, 3, size, size] of pictures from streams that training never draws."""
    sets: dict[str, list[Image.Image]] = {"scenes": [], "textures": [], "novel": []}
    for index in range(number):
        rng = np.random.default_rng([seed, HELD_OUT_STREAM, index])
        sets["scenes"].append(render_wide(sample_wide(rng), rng, size))
        sets["textures"].append(sample_texture(rng, size))
        rng = np.random.default_rng([seed, NOVEL_STREAM, index])
        sets["novel"].append(render(sample_scene(rng, "test_novel"), rng))
    return {name: torch.stack([image_to_tensor(i, size) for i in images]) for name, images in sets.items()}


def _card(model: ViTVQGAN, recipe: dict[str, Any], figures: dict[str, dict[str, float]]) -> str:
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        "# ViT-VQGAN of the demo world",
        "",
        f"An image tokenizer: {config.image_size} x {config.image_size} pixels to {config.grid[0]} x "
        f"{config.grid[1]} tokens of {config.n_embed} codes ({config.embed_dim} dimensions). "
        f"{parameters:,} parameters; state-dict names of enhancing-transformers' ViT-VQGAN.",
        "",
        "- Data: pictures drawn by `pipeline.corpora.world`: the wider world (70 %: one to three objects,",
        "  ten colours, free colours, eight shapes) and textures (30 %: handwriting-like strokes, scribbles,",
        "  fades, grain, waves, clutter). No photograph, nothing downloaded. The combinations of colour and",
        "  shape held out for the demo's `test_novel` appear in none of them.",
        f"- Training: {recipe['steps']} steps of {recipe['batch_size']} pictures, seed {recipe['seed']}, "
        f"AdamW, learning rate {recipe['learning_rate']}; squared + 0.1 absolute error + codebook loss.",
        "- Made by `im2speech pretrain vqgan`. Fingerprint `" + model.fingerprint + "`.",
        "- Licence: that of this repository.",
        "",
        "| pictures never trained on | number | PSNR, dB | codes used | perplexity |",
        "|---|---|---|---|---|",
    ]
    names = {
        "scenes": "scenes of the wider world",
        "textures": "textures",
        "novel": "demo scenes, unseen combinations",
    }
    for name, title in names.items():
        f = figures[name]
        lines.append(
            f"| {title} | {f['num_images']:.0f} | {f['psnr']:.1f} | {100 * f['usage']:.1f} % | {f['perplexity']:.0f} |"
        )
    lines += [
        "",
        "`reconstructions.png`: originals above reconstructions, twelve of each row of the table.",
        "",
    ]
    return "\n".join(lines)
