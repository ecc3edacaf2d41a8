"""What a tokenizer does to pictures, for eyes and plots: metrics, tables, a sheet of reconstructions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.files import atomic_path, write_json, write_text
from pipeline.vision.tokenizer import ImageTokenizer
from pipeline.vision.transforms import image_grid, tensor_to_image

TRAINING_FIELDS = ("step", "l1", "l2", "codebook", "rate", "used")


def reconstruction_grid(model: ImageTokenizer, images: torch.Tensor, columns: int = 12) -> Image.Image:
    """Rows of originals, each above the row of its reconstructions; images as the model takes them."""
    device = next(model.parameters()).device
    rebuilt = model.decode_codes(model.encode_codes(images.to(device))).cpu()
    rows = [
        [tensor_to_image(image) for image in part]
        for pair in zip(images.split(columns), rebuilt.split(columns), strict=True)
        for part in pair
    ]
    return image_grid(rows)


def write_report(
    folder: Path,
    model: ImageTokenizer,
    figures: dict[str, float],
    counts: NDArray[np.int64],
    history: Sequence[dict[str, float]],
    images: torch.Tensor | None,
) -> None:
    """Write metrics.json, usage.csv, training.csv and reconstructions.png into `folder`.

    usage.csv: codes from the most to the least used. training.csv: empty but for its header without training;
    further losses are further columns. The pictures are `images`; blank of None, and of a tokenizer that only encodes.

    figures and counts as from `training.measure`, history as from `training.train_vit_vqgan`.
    """
    # Rounded, because the last digits depend on the number of threads.
    write_json(folder / "metrics.json", {name: round(value, 4) for name, value in figures.items()})
    lines = [f"{rank},{count}" for rank, count in enumerate(np.sort(counts)[::-1])]
    write_text(folder / "usage.csv", "\n".join(["rank,count", *lines]) + "\n")
    columns = [*TRAINING_FIELDS, *sorted({name for record in history for name in record} - set(TRAINING_FIELDS))]
    lines = [",".join(f"{record[name]:.6g}" for name in columns) for record in history]
    write_text(folder / "training.csv", "\n".join([",".join(columns), *lines]) + "\n")
    with atomic_path(folder / "reconstructions.png") as temporary:
        blank = Image.new("RGB", model.config.image_sides[::-1], (128, 128, 128))
        sheet = blank if images is None or not model.can_decode else reconstruction_grid(model, images)
        sheet.save(temporary, "PNG")
