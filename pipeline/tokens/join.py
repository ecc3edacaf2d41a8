"""Joins by number: rows + speech units + image tokens -> one token shard, and nothing gets lost on the way.

`manifests/<split>/NNNNN.jsonl` + `units/<split>/NNNNN.npz` + `images/<split>/NNNNN.npz` ->
`<split>/NNNNN.tar`. Images in = samples with an image + rejects without a caption id; captions in =
captions + rejects with an id. A row without a picture (a corpus of speech alone) becomes a sample without
image tokens.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.files import sha256_file
from pipeline.manifest import Caption, Reject, Row, read_rejects, read_rows, shard_paths, split_names
from pipeline.media import MediaError, jpeg_bytes
from pipeline.runner import ShardResult
from pipeline.tokens.index import COUNTED, Tokenizers
from pipeline.tokens.parts import ImagesPart, UnitsPart, read_images_part, read_units_part
from pipeline.tokens.sample import Sample, TokenCaption
from pipeline.tokens.write import write_shard

STAGE = "shards"


@dataclass(frozen=True)
class Sources:
    """Where the pieces of a shard lie, and how they are to be joined.

    corpus: root of the pictures, None for shards without pixels; pixel_size: shorter side of stored
    pictures, 0 for the bytes as they are; limits: shard name -> rows to take of it (trial runs); reasons:
    (key, caption id) -> why an earlier stage left it out.
    """

    manifests: Path
    units: Path
    images: Path
    tokenizers: Tokenizers
    corpus: Path | None = None
    pixel_size: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def rows(self, name: str) -> list[Row]:
        """The rows of a shard that this run takes."""
        rows = read_rows(self.manifests / f"{name}.jsonl")
        return rows[: self.limits.get(name, len(rows))]


def choose_shards(manifests: Path, limit: int | None = None) -> tuple[list[str], dict[str, int]]:
    """(names of all shards in order; how many rows to take of those that `limit` rows a split cuts)."""
    names: list[str] = []
    limits: dict[str, int] = {}
    for split in split_names(manifests):
        left = limit
        for path in shard_paths(manifests, split):
            if left is not None:
                num_rows = len(read_rows(path))
                if left == 0:
                    break
                if left < num_rows:
                    limits[f"{split}/{path.stem}"] = left
                left -= min(left, num_rows)
            names.append(f"{split}/{path.stem}")
    return names, limits


def upstream_reasons(*folders: Path) -> dict[tuple[str, str], str]:
    """(key, caption id) -> reason, out of the rejects.jsonl of earlier stages (a missing file has none)."""
    paths = [folder / "rejects.jsonl" for folder in folders]
    rejects = [reject for path in paths if path.is_file() for reject in read_rejects(path)]
    return {(reject.key, reject.id): reject.reason for reject in rejects}


def make_shard(sources: Sources, name: str, path: Path) -> ShardResult:
    """Write the shard `name` to `path`. InputError when parts do not belong to the rows or tokenizers."""
    rows = sources.rows(name)
    units = _units(sources, name, rows)
    images = _images(sources, name, rows)
    rejects: list[Reject] = []
    counts = Counter({name: 0 for name in (*COUNTED, "milliseconds")})
    write_shard(path, _joined(sources, rows, units, images, rejects, counts))
    facts = {"sha256": sha256_file(path), "filesize": path.stat().st_size}
    return ShardResult(dict(counts), rejects, facts)


def _joined(
    sources: Sources,
    rows: list[Row],
    units: UnitsPart,
    images: ImagesPart | None,
    rejects: list[Reject],
    counts: Counter[str],
) -> Iterator[Sample]:
    """The samples in the order of the rows; what is left out goes to `rejects`, what stays into `counts`."""
    unit_index = units.index()
    image_index = {} if images is None else images.index()
    for row in rows:
        captions = [_caption(caption, units, unit_index) for caption in row.captions]
        kept = [caption for caption in captions if caption is not None]
        reason = _row_reason(sources, row, image_index, bool(kept))
        jpg = None
        if reason is None and row.image is not None and sources.corpus is not None:
            jpg, reason = _pixels(sources.corpus, row.image.path, row.image.sha256, sources.pixel_size)
        for caption, found in zip(row.captions, captions, strict=True):
            if found is None:
                why = sources.reasons.get((row.key, caption.id), "not in the units part")
                rejects.append(Reject(row.key, caption.id, STAGE, f"no units: {why}"))
            elif reason is not None:
                rejects.append(Reject(row.key, caption.id, STAGE, f"its image was left out: {reason}"))
        if reason is not None:
            rejects.append(Reject(row.key, "", STAGE, reason))
            continue
        image = None if images is None or row.image is None else images.tokens[image_index[row.key]]
        counts.update(samples=1, images=int(image is not None), captions=len(kept))
        for caption, found in zip(row.captions, captions, strict=True):
            if found is not None:
                frames = int(found.durations.sum(dtype=np.int64))
                milliseconds = round(1000 * caption.num_samples / caption.sample_rate)
                counts.update(units=len(found.units), frames=frames, milliseconds=milliseconds)
        yield Sample(row.key, image, kept, jpg)


def _caption(caption: Caption, units: UnitsPart, index: Mapping[str, int]) -> TokenCaption | None:
    if caption.id not in index:
        return None
    return TokenCaption(caption.id, caption.speaker, caption.text, *units.utterance(index[caption.id]))


def _row_reason(sources: Sources, row: Row, image_index: Mapping[str, int], has_caption: bool) -> str | None:
    """Why a row cannot become a sample, or None."""
    if row.image is not None and row.key not in image_index:
        return f"no image tokens: {sources.reasons.get((row.key, ''), 'not in the images part')}"
    return None if has_caption else "no caption left"


def _pixels(corpus: Path, path: str, sha256: str, size: int) -> tuple[bytes | None, str | None]:
    """(JPEG bytes, None), or (None, why the picture cannot be taken)."""
    try:
        if (corpus / path).is_file() and sha256_file(corpus / path) != sha256:
            return None, f"picture changed since the manifest was made: {path}"
        return jpeg_bytes(corpus / path, size), None
    except MediaError as error:
        return None, f"picture cannot be read: {str(error).replace(str(corpus / path), path)}"


def _units(sources: Sources, name: str, rows: list[Row]) -> UnitsPart:
    path = sources.units / f"{name}.npz"
    part = read_units_part(path)
    vocab = sources.tokenizers.vocab()["units"]
    if len(part.units) and int(part.units.max()) >= vocab:
        raise InputError(
            f"{path}: unit {int(part.units.max())} does not exist in codebook "
            f"{sources.tokenizers.units['fingerprint']} of {vocab} units; run the units stage again"
        )
    known = {caption.id for row in rows for caption in row.captions}
    _refuse_strangers(path, set(part.index()) - known, name, sources)
    return part


def _images(sources: Sources, name: str, rows: list[Row]) -> ImagesPart | None:
    """The images part; None where no row of the shard has a picture."""
    path = sources.images / f"{name}.npz"
    if not any(row.image is not None for row in rows):
        return None
    if sources.tokenizers.image is None:
        rows_path = sources.manifests / f"{name}.jsonl"
        raise InputError(f"{rows_path}: has pictures, but {sources.images} has no tokenizer.json")
    part = read_images_part(path)
    vocab, about = sources.tokenizers.vocab()["image"], sources.tokenizers.image
    if part.tokens.size and int(part.tokens.max()) >= vocab:
        raise InputError(
            f"{path}: token {int(part.tokens.max())} does not exist in image tokenizer "
            f"{about['fingerprint']} of {vocab} tokens; run the images stage again"
        )
    if len(part) and "grid" in about and tuple(about["grid"]) != part.tokens.shape[1:]:
        raise InputError(
            f"{path}: grids of {part.tokens.shape[1:]} tokens, image tokenizer {about['fingerprint']} makes "
            f"{tuple(about['grid'])}; run the images stage again"
        )
    _refuse_strangers(path, set(part.index()) - {row.key for row in rows}, name, sources)
    return part


def _refuse_strangers(path: Path, strangers: set[str], name: str, sources: Sources) -> None:
    """A part that knows ids which its rows do not have was made from another manifest."""
    if strangers and name not in sources.limits:
        raise InputError(
            f"{path}: holds '{min(strangers)}', which {sources.manifests / name}.jsonl does not have; "
            "the part was made from another manifest, run its stage again"
        )
