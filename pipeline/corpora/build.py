"""From a corpus to its manifest: read the layout, check every file, count, and write numbered shards.

Writes ``<split>/NNNNN.jsonl``, ``rejects.jsonl``, ``leaks.json`` and ``summary.json`` into a manifest
folder; other files there are left alone.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.corpora import get_reader
from pipeline.corpora.check import Limits, check_rows, count_reasons, drop_repeated
from pipeline.corpora.unchecked import Options, UncheckedRow
from pipeline.errors import InputError
from pipeline.files import sha256_file, write_json
from pipeline.manifest import Reject, Row


@dataclass(frozen=True)
class Manifest:
    """Checked rows by split, what was left out, and how many captions the cap cut off."""

    splits: dict[str, list[Row]]
    rejects: list[Reject]
    num_capped: int

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.splits.values()))

    @property
    def num_captions(self) -> int:
        return sum(len(row.captions) for rows in self.splits.values() for row in rows)

    def num_rejected(self) -> tuple[int, int]:
        """(rows, captions)"""
        rows = sum(not reject.id for reject in self.rejects)
        return rows, len(self.rejects) - rows


def build(
    root: Path,
    corpus: str,
    options: Options,
    limits: Limits,
    *,
    splits: Sequence[str] = (),
    limit: int | None = None,
    num_workers: int = 1,
) -> Manifest:
    """Read and check a corpus.

    Args:
        splits: keep only these; empty keeps all.
        limit: only this many rows of each split, the first in the corpus's order.

    Raises InputError for an unknown corpus, a layout that is not there, a split asked for that does not
    exist, and a corpus of which nothing can be used.
    """
    read: list[UncheckedRow] = []
    rejects: list[Reject] = []
    for item in get_reader(corpus)(root, options):
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            read.append(item)
    known = sorted({row.split for row in read})
    for split in splits:
        if split not in known:
            raise InputError(f"{root}: no split {split!r}; the corpus has {', '.join(known)}")
    kept, repeated = drop_repeated(row for row in read if not splits or row.split in splits)
    rejects += repeated
    if limit is not None:
        num_read, kept = len(kept), _first(kept, limit)
        # A trial run takes the same share of what the reader left out, or that alone would be too much of it.
        rejects = rejects[: len(rejects) * len(kept) // max(1, num_read)]
    checked = check_rows(root, kept, limits, num_workers)
    by_split: dict[str, list[Row]] = {}
    for one in checked:
        rejects += one.rejects
        if one.row is not None:
            by_split.setdefault(one.split, []).append(one.row)
    if not by_split:
        raise InputError(f"{root}: not one row can be used. {_reasons(rejects)}")
    return Manifest(dict(sorted(by_split.items())), rejects, sum(one.num_capped for one in checked))


def _first(rows: Sequence[UncheckedRow], limit: int) -> list[UncheckedRow]:
    seen: Counter[str] = Counter()
    first = []
    for row in rows:
        seen[row.split] += 1
        if seen[row.split] <= limit:
            first.append(row)
    return first


def refuse_too_many_rejects(built: Manifest, max_fraction: float, rejects_path: Path) -> None:
    """Raise InputError when more than ``max_fraction`` of the rows or of the captions were rejected.

    The rejects are then written to ``rejects_path``, which the message names with the most frequent reasons.
    """
    rows, captions = built.num_rejected()
    row_share = rows / (built.num_rows + rows)
    caption_share = captions / (built.num_captions + captions)
    if max(row_share, caption_share) <= max_fraction:
        return
    manifest.write_rejects(rejects_path, built.rejects)
    raise InputError(
        f"{row_share:.1%} of the rows and {caption_share:.1%} of the captions cannot be used, "
        f"more than max_reject_fraction = {max_fraction:g}. {_reasons(built.rejects)} "
        f"All are listed in {rejects_path}; mend the corpus or raise manifest.max_reject_fraction."
    )


def _reasons(rejects: Sequence[Reject]) -> str:
    common = count_reasons(rejects).most_common(5)
    examples = {reason: next(r.reason for r in rejects if r.reason.startswith(reason)) for reason, _ in common}
    listed = "; ".join(f"{count} x {examples[reason]}" for reason, count in common)
    return f"Most frequent reasons: {listed}." if listed else "The corpus lists no rows."


def write(out: Path, built: Manifest, rows_per_shard: int, seed: int) -> dict[str, Any]:
    """Write shards, rejects, leaks and counts into ``out``; returns the counts (summary.json)."""
    manifest.write_splits(out, built.splits, rows_per_shard=rows_per_shard, seed=seed)
    leaks = manifest.find_leaks(built.splits)
    manifest.write_rejects(out / "rejects.jsonl", built.rejects)
    write_json(out / "leaks.json", [asdict(leak) for leak in leaks])
    rows, captions = built.num_rejected()
    summary = {
        "capped_captions": built.num_capped,
        "leaks": len(leaks),
        "read": {
            "captions": built.num_captions + captions + built.num_capped,
            "rows": built.num_rows + rows,
        },
        "reasons": dict(sorted(count_reasons(built.rejects).items())),
        "rejected": {"captions": captions, "rows": rows},
        "splits": {split: {**_counts(rows_), **_shards(out, split)} for split, rows_ in built.splits.items()},
    }
    write_json(out / "summary.json", summary)
    return summary


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    captions = [caption for row in rows for caption in row.captions]
    return {
        "captions": len(captions),
        "rows": len(rows),
        "rows_without_image": sum(row.image is None for row in rows),
        "seconds": round(sum(caption.seconds for caption in captions), 3),
        "speakers": len({caption.speaker for caption in captions}),
    }


def _shards(out: Path, split: str) -> dict[str, Any]:
    """How many shards, and one digest for all: whoever tracks summary.json tracks every row."""
    digest = hashlib.sha256()
    paths = manifest.shard_paths(out, split)
    for path in paths:
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return {"sha256": digest.hexdigest(), "shards": len(paths)}
