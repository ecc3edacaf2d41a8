"""shards: rows + units + image tokens -> token shards, their index and their card.

Reads manifests/, data/units/, data/images/ (and the corpus, for pixels); writes data/shards/, the product
that people share: webdataset tars, an index.json a split, the codebooks, statistics, README.md, contents.json,
rejects.jsonl and summary.json.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages._cli import In, Out, Section, StageContext

if TYPE_CHECKING:
    from pipeline.runner import RunReport
    from pipeline.tokens.card import About
    from pipeline.tokens.index import Tokenizers


class Params(Section):
    """The section `shards` of params.yaml."""

    compression: Literal["none", "gzip"] = Field(
        "none", description="gzip saves most of the bytes of shards without pixels; wids cannot read it."
    )
    include_pixels: bool = Field(True, description="Keep each picture as <key>.jpg beside its tokens.")
    pixel_size: int = Field(0, ge=0, description="Shorter side of kept pictures; 0 keeps the original bytes.")
    include_codebooks: bool = Field(True, description="Carry the codebooks, so that the set can be trained on alone.")
    max_reject_fraction: float = Field(0.05, ge=0, le=1, description="Fail above this part of rows and captions.")
    title: str = Field("Image and speech tokens", description="Title of the dataset card.")
    licence: str = Field("unknown", description="Licence of the source, as the Hub names it: cc-by-4.0, ...")
    description: str = Field("", description="What the source is, in Markdown, for the card.")
    citation: str = Field("", description="How to cite the source, in Markdown, for the card.")


def run(
    params: Params,
    context: StageContext,
    *,
    root: In = Path("data/demo"),
    manifests: In = Path("manifests"),
    codebook: In = Path("data/kmeans/codebook.safetensors"),
    vqgan: In = Path("data/vqgan"),
    units: In = Path("data/units"),
    images: In = Path("data/images"),
    out: Out = Path("data/shards"),
) -> None:
    """Join units and image tokens into token shards that stock webdataset reads, with index and card."""
    from pipeline import media, runner
    from pipeline.files import fingerprint, sha256_file
    from pipeline.tokens import card, index, join, parts, sample, write

    tokenizers = _tokenizers(units, images, codebook, vqgan)
    names, limits = join.choose_shards(manifests, context.limit)
    pixels_root = root if params.include_pixels else None
    reasons = join.upstream_reasons(units, images)
    sources = join.Sources(manifests, units, images, tokenizers, pixels_root, params.pixel_size, limits, reasons)
    rows = [row for name in names for row in sources.rows(name)]
    num_items = len(rows) + sum(len(row.captions) for row in rows)
    if context.dry_run:
        print(f"  {len(names)} shards of {len(rows)} rows with {num_items - len(rows)} captions")
        return
    inputs = [manifests / f"{name}.jsonl" for name in names]
    inputs += [folder / f"{name}.npz" for folder in (units, images) for name in names]
    about = card.About(params.title, params.licence, params.description, params.citation)
    suffix = ".tar.gz" if params.compression == "gzip" else ".tar"
    carried = (codebook, vqgan) if params.include_codebooks else (None, None)
    report = runner.run_shards(
        partial(join.make_shard, sources),
        names,
        out,
        suffix=suffix,
        scratch_dir=context.settings.scratch_dir,
        fingerprint=fingerprint(
            {
                "code": runner.code_fingerprint([join, write, sample, parts, media, index]),
                "compression": params.compression,
                "inputs": [sha256_file(path) if path.is_file() else None for path in inputs],
                "limits": limits,
                "pixels": [params.include_pixels, params.pixel_size],
                "reasons": sorted([*key, reason] for key, reason in reasons.items()),
                "tokenizers": [tokenizers.image, tokenizers.units],
            }
        ),
        num_workers=context.settings.num_workers,
        executor=context.settings.executor,
        label="shards",
        max_reject_fraction=params.max_reject_fraction,
        num_items=num_items,
        num_threads=1,
        finish=partial(_finish, tokenizers, about, suffix, carried),
    )
    context.log(event="shards", num_computed=report.num_computed, **report.counts)


def _tokenizers(units: Path, images: Path, codebook: Path, vqgan: Path) -> "Tokenizers":
    """What the stages before say of their tokenizers. InputError when tokens are of other ones than are here.

    Codebook and image tokenizer may be absent (tokens made elsewhere); then there is nothing to compare with.
    """
    from safetensors import safe_open

    from pipeline.errors import InputError
    from pipeline.files import read_json
    from pipeline.speech.kmeans import Codebook
    from pipeline.tokens.index import Tokenizers

    def about(path: Path, fingerprint: str, vocab: str, maker: Path, expected: str | None) -> dict[str, Any]:
        values = read_json(path)
        for name in (fingerprint, vocab):
            if not isinstance(values, dict) or name not in values:
                raise InputError(f"{path}: the field '{name}' is missing; run its stage again")
        if expected not in (None, values[fingerprint]):
            raise InputError(
                f"{path}: {fingerprint} is {values[fingerprint]}, but {maker} is {expected}; "
                "run the stage that wrote these tokens again, or give the tokenizer that made them"
            )
        return {"fingerprint": values.pop(fingerprint), "vocab": values.pop(vocab), **values}

    expected = Codebook.load(codebook).fingerprint if codebook.exists() else None
    of_units = about(units / "units.json", "codebook_fingerprint", "num_units", codebook, expected)
    path, weights = images / "tokenizer.json", vqgan / "model.safetensors"
    if not path.is_file():
        return Tokenizers(None, of_units)
    expected = None
    if weights.is_file():
        with safe_open(weights, framework="np") as tensors:
            expected = (tensors.metadata() or {}).get("fingerprint")
    return Tokenizers(about(path, "tokenizer_fingerprint", "vocab", vqgan, expected), of_units)


def _finish(
    tokenizers: "Tokenizers",
    about: "About",
    suffix: str,
    carried: tuple[Path | None, Path | None],
    folder: Path,
    report: "RunReport",
) -> None:
    """Write the index of every split, the codebooks, the statistics, the card, and last what the set is made of."""
    from pipeline.files import write_text
    from pipeline.tokens.card import dataset_card
    from pipeline.tokens.carried import FOLDER, UNITS_NAME, carry_image_codebook
    from pipeline.tokens.contents import write_contents
    from pipeline.tokens.index import write_indexes
    from pipeline.tokens.statistics import write_statistics

    indexes = write_indexes(folder, report.shards, tokenizers, suffix)
    codebook, vqgan = carried
    if codebook is not None and codebook.is_file():
        (folder / FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(codebook, folder / FOLDER / UNITS_NAME)
    if vqgan is not None and tokenizers.image is not None and (vqgan / "model.safetensors").is_file():
        carry_image_codebook(vqgan / "model.safetensors", folder)
    write_text(folder / "README.md", dataset_card(about, indexes, write_statistics(folder)))
    write_contents(folder)
