"""Pictures to tensors: the one preprocessing that tokenizers and captioners share."""

from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

Resize = Literal["squash", "crop"]
"""How a picture becomes square: `squash` ignores its aspect (as SeiT does), `crop` keeps the centre."""


def image_to_tensor(image: Image.Image, size: int | tuple[int, int], resize: Resize = "squash") -> torch.Tensor:
    """A float32 tensor [3, height, width] in [0, 1] of a picture of any mode; no mean or deviation applied.

    size: the side of the square, or (height, width). Resizing is bicubic and antialiased; `squash` is the
    preprocessing of SeiT (naver-ai/seit). ValueError for another `resize`.
    """
    if resize not in get_args(Resize):
        raise ValueError(f"resize {resize!r}: one of {', '.join(get_args(Resize))} was expected")
    height, width = (size, size) if isinstance(size, int) else size
    image = image.convert("RGB")
    if resize == "crop":
        scale = min(image.width / width, image.height / height)
        box_width, box_height = width * scale, height * scale
        left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
        box = (left, top, left + box_width, top + box_height)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    elif image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32) / np.float32(255)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def tensor_to_image(tensor: torch.Tensor) -> Image.Image:
    """The RGB picture of a tensor [3, height, width]; values outside [0, 1] are clipped."""
    pixels = tensor.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def image_grid(rows: list[list[Image.Image]], scale: int = 2, gap: int = 2) -> Image.Image:
    """Equally sized pictures side by side, magnified by `scale` without smoothing."""
    width, height = (side * scale for side in rows[0][0].size)
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), (128, 128, 128))
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            where = (gap + left * (width + gap), gap + top * (height + gap))
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), where)
    return sheet
