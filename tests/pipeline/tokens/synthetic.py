"""A small corpus of synthetic parts on disk, as the stages before `shards` leave them."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from pipeline.files import write_json
from pipeline.manifest import Caption, Image, Reject, Row, write_rejects, write_rows
from pipeline.tokens.parts import ImagesPart, UnitsPart, deduplicate, write_images_part, write_units_part

NUM_UNITS, VOCAB, GRID = 50, 300, (4, 4)
SPLITS = {"train": 3, "val": 1}
ROWS_PER_SHARD = 4


def write_corpus(
    root: Path, *, missing_units: frozenset[str] = frozenset(), missing_images: frozenset[str] = frozenset()
) -> None:
    """Write corpus/ (jpg), manifests/, units/ and images/; the named ids and keys are left out."""
    rng = np.random.default_rng(7)
    number = 0
    for split, num_shards in SPLITS.items():
        for shard in range(num_shards):
            rows = []
            for _ in range(ROWS_PER_SHARD):
                rows.append(_row(root / "corpus", f"{split}/im-{number}", rng))
                number += 1
            write_rows(root / "manifests" / split / f"{shard:05d}.jsonl", rows)
            _write_parts(root, f"{split}/{shard:05d}", rows, rng, missing_units, missing_images)
    write_json(
        root / "units" / "units.json",
        {
            "codebook_fingerprint": "c" * 16,
            "num_units": NUM_UNITS,
            "encoder": "tiny",
            "sample_rate": 16000,
            "hop": 320,
        },
    )
    about = {"tokenizer_fingerprint": "t" * 16, "vocab": VOCAB, "grid": list(GRID)}
    write_json(root / "images" / "tokenizer.json", about)
    reason = "audio is too short: 100 samples"
    rejects = [Reject(id_[:-2], id_, "units", reason) for id_ in sorted(missing_units)]
    write_rejects(root / "units" / "rejects.jsonl", rejects)


def _row(corpus: Path, key: str, rng: np.random.Generator) -> Row:
    path = corpus / f"{key}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    image = Image(f"{key}.jpg", 30, 20, hashlib.sha256(path.read_bytes()).hexdigest())
    captions = tuple(
        Caption(f"{key}-{n}", f"{key}-{n}.wav", 16000, 16000, "0" * 64, f"s{n}", f"a café, nº {n}") for n in range(2)
    )
    return Row(key, image, captions)


def _write_parts(
    root: Path,
    name: str,
    rows: list[Row],
    rng: np.random.Generator,
    missing_units: frozenset[str],
    missing_images: frozenset[str],
) -> None:
    ids = [caption.id for row in rows for caption in row.captions]
    runs = [deduplicate(rng.integers(0, NUM_UNITS, rng.integers(3, 60))) for _ in ids]
    kept = [(id_, run) for id_, run in zip(ids, runs, strict=True) if id_ not in missing_units]
    part = UnitsPart.from_utterances([i for i, _ in kept], [r[0] for _, r in kept], [r[1] for _, r in kept])
    write_units_part(root / "units" / f"{name}.npz", part)
    tokens = rng.integers(0, VOCAB, (len(rows), *GRID)).astype(np.uint16)
    chosen = [i for i, row in enumerate(rows) if row.key not in missing_images]
    images = ImagesPart(np.array([rows[i].key for i in chosen], dtype=np.str_), tokens[chosen])
    write_images_part(root / "images" / f"{name}.npz", images)
