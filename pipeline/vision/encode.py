"""Rows of a manifest -> image tokens, one numbered shard at a time; and pictures in bulk for training.

Reads a tokenizer folder, `manifests/<split>/NNNNN.jsonl` and the pictures that its rows name; writes an
images part. A picture that cannot be read becomes a reject and the others go on. Decoding and resizing run in
threads ahead of the model; memory holds a few batches, whatever the size of the shard.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.ahead import ahead
from pipeline.arithmetic import CPU_BATCH_BYTES, Precision, arithmetic
from pipeline.files import stamp
from pipeline.manifest import Reject, Row, read_rows, read_split
from pipeline.media import MediaError, read_image
from pipeline.runner import ShardResult, worker_slot
from pipeline.tokens.parts import ImagesPart, write_images_part
from pipeline.vision.tokenizer import ImageTokenizer, load_tokenizer
from pipeline.vision.transforms import image_to_tensor
from pipeline.vision.vit_vqgan import ViTVQGAN

STAGE = "images"


@dataclass(frozen=True)
class ImageSources:
    """Where pictures and tokenizer lie. `limits`: shard name -> rows to take of it (trial runs)."""

    corpus: Path
    manifests: Path
    tokenizer: Path
    batch_size: int = 32
    device: str = "cpu"
    precision: Precision = "fp32"
    limits: Mapping[str, int] = field(default_factory=dict)

    def rows(self, name: str) -> list[Row]:
        """The rows of a shard that this run takes."""
        rows = read_rows(self.manifests / f"{name}.jsonl")
        return rows[: self.limits.get(name, len(rows))]


def encode_shard(sources: ImageSources, name: str, path: Path) -> ShardResult:
    """Write the tokens of the shard `name` ("train/00007") to `path`; for `runner.run_shards`.

    Rows without a picture are passed over. On a CPU one thread is used, so that the same bytes come out
    however many workers share the machine, and a batch is no larger than the cache holds.
    """
    model = _model(str(sources.tokenizer), sources.device, stamp(sources.tokenizer / "model.safetensors"))
    device = next(model.parameters()).device
    rows = [row for row in sources.rows(name) if row.image is not None]
    keys: list[str] = []
    rejects: list[Reject] = []
    grids: list[NDArray[np.uint16]] = [np.zeros((0, *model.grid), np.uint16)]
    size = batch_size(model, sources.batch_size)
    batched = [rows[start : start + size] for start in range(0, len(rows), size)]
    read = partial(_read_batch, sources.corpus, model.config.image_sides, model.config.resize)
    for batch in ahead(read, batched, num_threads=1 if device.type == "cpu" else 8, depth=10):
        pictures = {key: found for key, found in batch if not isinstance(found, str)}
        rejects += [Reject(key, "", STAGE, found) for key, found in batch if isinstance(found, str)]
        keys += pictures
        if pictures:
            stacked = torch.from_numpy(np.stack(list(pictures.values())))
            if device.type == "cuda":
                stacked = stacked.pin_memory()
            with arithmetic(device, sources.precision):
                codes = model.encode_codes(to_unit(stacked.to(device, non_blocking=True)))
            grids.append(codes.cpu().numpy().astype(np.uint16))
    tokens = np.concatenate(grids)
    write_images_part(path, ImagesPart(np.array(keys, dtype=np.str_), tokens))
    return ShardResult({"images": len(keys), "tokens": tokens.size}, rejects)


def batch_size(model: ImageTokenizer, asked: int) -> int:
    """Pictures to encode at a time: what was asked for, on a CPU at most what its cache holds."""
    if next(model.parameters()).device.type != "cpu":
        return asked
    if isinstance(model, ViTVQGAN):
        activations = model.grid[0] * model.grid[1] * model.config.encoder.mlp_dim
    else:
        activations = math.prod(model.config.image_sides) * model.config.ch
    bytes_a_picture = 4 * activations
    return max(1, min(asked, CPU_BATCH_BYTES // bytes_a_picture))


@lru_cache(maxsize=1)
def _model(folder: str, device: str, changed: tuple[int, int]) -> ImageTokenizer:
    """The tokenizer, loaded once a worker; GPUs are given to workers round-robin."""
    if device == "cuda":
        device = f"cuda:{worker_slot() % torch.cuda.device_count()}"
    elif device == "cpu":
        torch.set_num_threads(1)
    return load_tokenizer(Path(folder), device)


def _read_batch(
    corpus: Path, sides: tuple[int, int], resize: str, rows: Sequence[Row]
) -> list[tuple[str, NDArray[np.uint8] | str]]:
    """(key, picture, or why it cannot be read) of each row."""
    found: list[tuple[str, NDArray[np.uint8] | str]] = []
    for row in rows:
        try:
            found.append((row.key, _read(corpus, sides, resize, row)))
        except MediaError as error:
            reason = str(error).replace(str(corpus), "").lstrip("/")
            found.append((row.key, f"unreadable image: {reason}"))
    return found


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 3, height, width] -> float32 in [0, 1]."""
    return pixels.float() / 255


def _read(corpus: Path, sides: tuple[int, int], resize: str, row: Row) -> NDArray[np.uint8]:
    """One picture, uint8 [3, height, width]. MediaError when it cannot be read."""
    if row.image is None:
        raise MediaError(f"{row.key}: has no picture")
    tensor = image_to_tensor(read_image(corpus / row.image.path), sides, resize)  # type: ignore[arg-type]
    return (tensor * 255).round().byte().numpy()


def choose_rows(manifests: Path, split: str, number: int | None, seed: int) -> list[Row]:
    """At most `number` rows (None: all) of a split that have a picture, drawn with the seed, in manifest order."""
    rows = [row for row in read_split(manifests, split) if row.image is not None]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:number]
    return [rows[index] for index in sorted(chosen)]


def read_pictures(
    corpus: Path, rows: Sequence[Row], sides: tuple[int, int], resize: str, num_threads: int = 1
) -> tuple[NDArray[np.uint8], list[str]]:
    """Pictures of rows in order, uint8 [n, 3, height, width], and why others could not be read.

    Memory: 3 * height * width bytes a picture; the caller bounds the number of rows.
    """

    def attempt(read: Callable[[Row], NDArray[np.uint8]], row: Row) -> NDArray[np.uint8] | str:
        try:
            return read(row)
        except MediaError as error:
            return str(error)

    with ThreadPoolExecutor(num_threads) as pool:
        found = list(pool.map(partial(attempt, partial(_read, corpus, sides, resize)), rows))
    pictures = [item for item in found if not isinstance(item, str)]
    reasons = [item for item in found if isinstance(item, str)]
    return np.array(pictures, dtype=np.uint8).reshape(len(pictures), 3, *sides), reasons


def batch_sampler(pictures: NDArray[np.uint8], size: int, seed: int) -> Callable[[int], torch.Tensor]:
    """step -> float32 [size, 3, height, width] in [0, 1], drawn with replacement as seed and step say."""

    def batch_at(step: int) -> torch.Tensor:
        chosen = np.random.default_rng([seed, step]).integers(len(pictures), size=size)
        return to_unit(torch.from_numpy(pictures[chosen]))

    return batch_at


def batches(pictures: NDArray[np.uint8], size: int) -> Iterator[torch.Tensor]:
    """float32 [<= size, 3, height, width] in [0, 1], in order."""
    for start in range(0, len(pictures), size):
        yield to_unit(torch.from_numpy(pictures[start : start + size]))
