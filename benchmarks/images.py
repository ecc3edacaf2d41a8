"""Image tokens: what the stage does against one picture at a time, as enhancing-transformers is used.

Both decode, resize and encode the same JPEG files with the same ViT-VQGAN (base of enhancing-transformers, random
weights; `small` with --small): 256 x 256 pixels, 32 x 32 tokens. The loop has all threads.
"""

import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._common import last_line, pairs, parser, run_stage
from pipeline.corpora.world.draw import render
from pipeline.corpora.world.scenes import sample_scene
from pipeline.files import sha256_file
from pipeline.manifest import Caption, Image, Row, write_rows
from pipeline.media import read_image
from pipeline.tokens.parts import read_images_part
from pipeline.vision.encode import ImageSources, encode_shard
from pipeline.vision.transforms import image_to_tensor
from pipeline.vision.vit_vqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig, load_vit_vqgan

SIZES = {"base": TransformerConfig(768, 12, 12, 3072), "small": TransformerConfig(512, 8, 8, 2048)}
SIDE = 256


def write_corpus(folder: Path, num_images: int, workers: int) -> list[str]:
    """Drawn scenes enlarged to photographs' size; the names of the shards."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(num_images):
        path = folder / "pictures" / f"{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        render(sample_scene(rng, "train"), rng).resize((640, 480)).save(path, quality=90)
        caption = Caption(f"c{number}", "none.wav", 1, 1, "0" * 64, "", "")
        rows.append(Row(f"k{number:06d}", Image(f"pictures/{path.name}", 640, 480, sha256_file(path)), (caption,)))
    size = max(1, num_images // (workers * 4))
    names = [f"train/{start // size:05d}" for start in range(0, num_images, size)]
    for name, start in zip(names, range(0, num_images, size), strict=True):
        write_rows(folder / "manifests" / f"{name}.jsonl", rows[start : start + size])
    return names


def one_at_a_time(model: ViTVQGAN, files: list[Path], device: str) -> np.ndarray:
    """The usual loop; attention as enhancing-transformers has it, two products with a softmax between."""
    found = []
    with sdpa_kernel(SDPBackend.MATH):
        for path in files:
            tensor = image_to_tensor(read_image(path), model.config.image_sides, model.config.resize)
            found.append(model.encode_codes(tensor[None].to(device)).cpu().numpy())
    return np.concatenate(found)


def ours(sources: ImageSources, names: list[str], folder: Path, workers: int) -> np.ndarray:
    """The stage's work, from files to parts, and back from these."""
    parts = run_stage(partial(encode_shard, sources), names, folder, workers)
    return np.concatenate([read_images_part(path).tokens for path in parts])


def main() -> None:
    """Print the comparison."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    options = arguments.parse_args()
    device, cores = options.device, len(os.sched_getaffinity(0))
    size = "small" if options.small else "base"
    num_images = (8 if options.small else 16) if device == "cpu" else (500 if options.small else 5000)
    results: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workers = cores if device == "cpu" else 1
        names = write_corpus(folder, num_images, workers)
        torch.manual_seed(0)
        config = ViTVQGANConfig(
            image_size=SIDE, patch_size=8, n_embed=8192, embed_dim=32, encoder=SIZES[size], decoder=SIZES["small"]
        )
        ViTVQGAN(config).save(folder / "model")
        model = load_vit_vqgan(folder / "model", device)
        files = sorted((folder / "pictures").iterdir())
        sources = ImageSources(folder, folder / "manifests", folder / "model", 32, device, options.precision)

        def mine() -> None:
            results["ours"] = ours(sources, names, folder, workers)

        def loop() -> None:
            torch.set_num_threads(cores)
            results["loop"] = one_at_a_time(model, files, device)

        ratio, own, other = pairs(mine, loop, options.pairs or (2 if options.small else 3))
    equal = float((results["ours"] == results["loop"]).mean())
    print(f"{num_images} pictures, ViT-VQGAN {size}, {cores} cores, {workers} workers, {device}")
    print(f"ours {num_images / own:.2f} pictures/s, loop {num_images / other:.2f}; tokens equal {equal:.6f}")
    last_line(
        "images",
        "one picture at a time, as enhancing-transformers is used",
        ratio,
        round(equal, 6),
        device,
        f"{num_images} JPEG files of 640 x 480, ViT-VQGAN {size}, {options.precision}, files to tokens",
        images_a_second=round(num_images / own, 3),
    )


if __name__ == "__main__":
    main()
