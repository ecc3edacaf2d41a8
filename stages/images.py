"""images: pictures -> image tokens, a numbered npz part for every shard of the manifest.

Reads manifests/, the corpus' pictures and data/vqgan/; writes data/images/<split>/NNNNN.npz, rejects.jsonl,
summary.json and tokenizer.json, which says whose tokens these are.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages._cli import In, Out, Section, StageContext

if TYPE_CHECKING:
    from pipeline.runner import RunReport


class Params(Section):
    """The section `images` of params.yaml."""

    batch_size: int = Field(32, ge=1, description="Pictures encoded at a time; on a CPU no more than its cache holds.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of the tokenizer's arithmetic. The halves are for GPUs and change some tokens."
    )
    max_reject_fraction: float = Field(
        0.01, ge=0, le=1, description="Fail when a larger share of pictures cannot be read."
    )


def run(
    params: Params,
    context: StageContext,
    *,
    root: In = Path("data/demo"),
    manifests: In = Path("manifests"),
    vqgan: In = Path("data/vqgan"),
    out: Out = Path("data/images"),
) -> None:
    """Encode every picture of the manifest with the image tokenizer."""
    from pipeline import media, runner
    from pipeline.files import fingerprint, sha256_file
    from pipeline.manifest import count_items
    from pipeline.tokens import join, parts
    from pipeline.vision import encode, taming_vqgan, tokenizer, transforms, vit_vqgan
    from stages._settings import resolve_device

    model = tokenizer.load_tokenizer(vqgan)
    names, limits = join.choose_shards(manifests, context.limit)
    device = resolve_device(context.settings.device)
    folders = (root.absolute(), manifests.absolute(), vqgan.absolute())
    sources = encode.ImageSources(*folders, params.batch_size, device, params.precision, limits)
    num_images = sum(count_items(manifests / f"{name}.jsonl", limits.get(name))[0] for name in names)
    if context.dry_run:
        print(f"  {num_images} pictures in {len(names)} shards, tokenizer {model.fingerprint}")
        return
    about = tokenizer.facts_of(model)
    if params.precision != "fp32":
        about["precision"] = params.precision
    report = runner.run_shards(
        partial(encode.encode_shard, sources),
        names,
        out,
        scratch_dir=context.settings.scratch_dir,
        fingerprint=fingerprint(
            {
                "batch_size": params.batch_size,
                "code": runner.code_fingerprint([encode, media, parts, taming_vqgan, tokenizer, transforms, vit_vqgan]),
                "root": str(root),
                "limits": limits,
                "manifests": [sha256_file(manifests / f"{name}.jsonl") for name in names],
                "tokenizer": about,
            }
        ),
        num_workers=context.settings.num_workers,
        executor=context.settings.executor,
        label="images",
        max_reject_fraction=params.max_reject_fraction,
        num_items=num_images,
        num_threads=1,
        rate=runner.Rate("images", 1.0, "images/s"),
        finish=partial(_finish, about),
    )
    context.log(event="images", num_computed=report.num_computed, **report.counts)
    print(f"images: {report.counts.get('images', 0)} pictures, {len(report.rejects)} rejected")


def _finish(about: dict[str, Any], folder: Path, report: "RunReport") -> None:
    from pipeline.files import write_json

    write_json(folder / "tokenizer.json", about)
