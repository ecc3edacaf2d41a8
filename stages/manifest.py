"""manifest: a corpus in its published layout -> rows in numbered shards, every file checked and hashed.

Reads the corpus under `manifest.root`. Writes manifests/<split>/NNNNN.jsonl, rejects.jsonl (what was left
out and why), leaks.json (images that stand in several splits) and summary.json (counts), because every
later stage works by rows and shard numbers and must never meet a file that cannot be read.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from stages._cli import Out, Section, StageContext


class Params(Section):
    corpus: str = Field("spokencoco", description="The published layout: spokencoco, flickr8k, places or table.")
    root: str = Field("data/demo", description="Folder of the corpus; paths in the manifest are relative to it.")
    restval: Literal["train", "separate", "drop"] = Field(
        "train",
        description="Where Karpathy's restval images go: into train, a split of their own, or nowhere.",
    )
    karpathy: str = Field("", description="Karpathy's split file under the root; empty: the usual places.")
    table: str = Field("table.jsonl", description="The CSV or JSONL file of a table corpus under the root.")
    split: str = Field("", description="Split of table rows that name none; empty: cut by the fractions.")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="Share of table rows without a split for val.")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="Share of table rows without a split for test.")
    splits: list[str] = Field([], description="Keep only these splits; empty: all.")
    extra_split: str = Field(
        "test_novel", min_length=1, description="The split beside train, val and test that dvc.yaml tracks."
    )
    rows_per_shard: int = Field(500, ge=1, description="Rows (images) in a numbered shard.")
    seed: int = Field(0, ge=0, description="Shuffles the rows, and cuts a table without splits.")
    max_captions: int = Field(0, ge=0, description="Captions kept of an image, the first ones; 0: all.")
    min_seconds: float = Field(0.1, gt=0, description="Shorter recordings are rejected.")
    max_seconds: float = Field(30.0, gt=0, description="Longer recordings are rejected.")
    max_reject_fraction: float = Field(
        0.01, ge=0, le=1, description="Fail when a larger share of rows or of captions is rejected."
    )


def run(params: Params, context: StageContext, *, out: Out = Path("manifests")) -> None:
    """Turn a corpus into rows: read its layout, open and hash every file, cut into numbered shards."""
    from pipeline.corpora import build
    from pipeline.corpora.check import Limits
    from pipeline.corpora.unchecked import Options

    if context.dry_run:
        return
    manifest = build.build(
        Path(params.root),
        params.corpus,
        Options(
            restval=params.restval,
            karpathy=params.karpathy,
            table=params.table,
            split=params.split,
            val_fraction=params.val_fraction,
            test_fraction=params.test_fraction,
            seed=params.seed,
        ),
        Limits(params.min_seconds, params.max_seconds, params.max_captions),
        splits=params.splits,
        limit=context.limit,
        num_workers=context.settings.num_workers,
    )
    scratch = context.settings.scratch_dir / "manifest"
    build.refuse_too_many_rejects(manifest, params.max_reject_fraction, scratch / "rejects.jsonl")
    summary = build.write(out, manifest, params.rows_per_shard, params.seed)
    # dvc.yaml names its outputs beforehand, so a split that this corpus lacks is an empty folder.
    for split in ("train", "val", "test", params.extra_split):
        (out / split).mkdir(exist_ok=True)
    for split, counts in summary["splits"].items():
        print(f"manifest: {split}: {counts['rows']} rows, {counts['captions']} captions")
    rows, captions = summary["rejected"]["rows"], summary["rejected"]["captions"]
    print(f"manifest: rejected {rows} rows, {captions} captions; {summary['leaks']} leaks between splits")
