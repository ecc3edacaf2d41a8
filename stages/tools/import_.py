"""im2speech import: what the field has published -> the folders that the stages take.

Foreign pickles are read as data by `pipeline.checkpoints` and never run. Each command writes safetensors with
a provenance.json, and prints what to put into params.yaml.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

command = typer.Typer(
    help="Bring in published checkpoints and tokens: read as data, never run; written as safetensors with provenance.",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Option(help="Folder to write.")]


@command.command()
def hubert(
    source: Annotated[Path, typer.Argument(help="A Hugging Face folder, or a .pt/.pth of fairseq, torchaudio, s3prl.")],
    out: Out,
    name: Annotated[str, typer.Option(help="What codebooks call it; empty: the source's name.")] = "",
) -> None:
    """HuBERT (base, large, xlarge, multilingual) -> a folder for `features.encoder` and `units.encoder`."""
    from pipeline.checkpoints.hubert import import_hubert

    found = import_hubert(source, out, name)
    config = found.config
    typer.echo(f"{out}: {found.layout} HuBERT, {config.num_hidden_layers} layers of {config.hidden_size}")
    if found.normalize is None:
        typer.echo("  the checkpoint does not say whether waveforms are normalised: false for base, true for large")
    else:
        typer.echo(
            f"  in params.yaml: features.encoder and units.encoder: {out}, normalize: {str(found.normalize).lower()}"
        )


@command.command()
def kmeans(
    source: Annotated[Path, typer.Argument(help="km.bin of joblib (any scikit-learn), .npy, or a torch file.")],
    out: Annotated[Path, typer.Option(help="The codebook.safetensors to write.")],
    encoder: Annotated[Path | None, typer.Option(help="Folder of the HuBERT it was fitted on.")] = None,
    layer: Annotated[int, typer.Option(min=1, help="Its layer, 1-based (GSLM's HuBERT codebooks: 6).")] = 6,
    normalize: Annotated[
        bool | None, typer.Option(help="Whether that HuBERT takes normalised waveforms; else as its folder says.")
    ] = None,
) -> None:
    """k-means centroids -> a codebook for `kmeans.source`."""
    from pipeline.checkpoints.kmeans import EncoderFacts, import_kmeans

    facts = None
    if encoder is not None:
        from pipeline.errors import InputError
        from pipeline.files import read_json
        from pipeline.speech.hubert import SpeechEncoder

        said = bool(read_json(encoder / "config.json").get("im2speech_normalize", False))
        chosen = said if normalize is None else normalize
        loaded = SpeechEncoder(encoder, layer, chosen)
        facts = EncoderFacts(loaded.name, loaded.sha256, layer, chosen, loaded.sample_rate, loaded.hop)
        width = int(loaded.model.config.hidden_size)
    codebook = import_kmeans(source, out, facts)
    num_units, dim = codebook.centroids.shape
    if facts is not None and dim != width:
        out.unlink()
        raise InputError(f"{source}: centroids of {dim} numbers, but {encoder} gives features of {width}")
    typer.echo(f"{out}: {num_units} units of {dim}, fingerprint {codebook.fingerprint}")
    if facts is None:
        typer.echo("  without --encoder nothing says which features it belongs to; the units stage will refuse it")
    typer.echo(f"  in params.yaml: kmeans.source: {out}")


@command.command()
def vocoder(
    source: Annotated[Path, typer.Argument(help="The generator's checkpoint (g_00500000, model.pt).")],
    out: Out,
    config: Annotated[Path | None, typer.Option(help="Its config.json; else the one beside it.")] = None,
    codebook: Annotated[Path | None, typer.Option(help="The codebook.safetensors whose units it speaks.")] = None,
    speaker: Annotated[str, typer.Option(help="Whose voice it is, for people to read.")] = "",
) -> None:
    """A unit HiFi-GAN (fairseq, speech-resynthesis) -> a vocoder folder."""
    from pipeline.checkpoints.vocoder import import_vocoder
    from pipeline.speech.kmeans import Codebook

    units = None if codebook is None else Codebook.load(codebook)
    made = import_vocoder(
        source,
        config or source.with_name("config.json"),
        out,
        units_fingerprint="" if units is None else units.fingerprint,
        num_units=None if units is None else len(units.centroids),
        speaker=speaker,
    )
    typer.echo(f"{out}: unit HiFi-GAN, {made.num_units} units at {made.sample_rate / made.info.hop:g} Hz")
    typer.echo("  use it by --vocoder of `im2speech evaluate`, or as the folder data/vocoder (see docs/reproduce.md)")


@command.command()
def vqgan(
    source: Annotated[Path, typer.Argument(help=".ckpt of enhancing-transformers, SeiT or taming-transformers.")],
    out: Out,
    codebook: Annotated[Path | None, typer.Option(help="SeiT's codebook.ckpt.")] = None,
    config: Annotated[Path | None, typer.Option(help="taming's yaml.")] = None,
    resize: Annotated[
        Literal["crop", "squash"], typer.Option(help="How pictures become square; SeiT: squash.")
    ] = "crop",
    crop_tokens: Annotated[int, typer.Option(min=0, help="Keep the centre of the grid; SeiT's models: 28.")] = 0,
    image_size: Annotated[int, typer.Option(min=16, help="Pixels a side, for taming without a yaml.")] = 256,
) -> None:
    """A ViT-VQGAN, SeiT's tokenizer or a taming VQGAN -> a folder for `vqgan.path`."""
    from pipeline.checkpoints.image_tokenizers import TokenizerSources, import_image_tokenizer

    sources = TokenizerSources(source, codebook, config, resize, crop_tokens, image_size)
    model = import_image_tokenizer(sources, out)
    rows, columns = model.grid
    typer.echo(f"{out}: {rows} x {columns} tokens of {model.vocab_size}, fingerprint {model.fingerprint}")
    typer.echo(f"  in params.yaml, section vqgan: source: path, path: {out}")


@command.command()
def captioner(
    source: Annotated[Path, typer.Argument(help="A Hugging Face GIT folder, or an Im2Sp checkpoint of the paper.")],
    out: Out,
    vqgan: Annotated[Path | None, typer.Option(help="Image units: the folder that `import vqgan` wrote.")] = None,
    codebook: Annotated[Path | None, typer.Option(help="The codebook.safetensors whose units it speaks.")] = None,
) -> None:
    """GIT -> a folder for `train.init`; the paper's captioners -> a folder that speaks, in the released id layout."""
    from pipeline.checkpoints.captioner import ImageUnits, import_captioner
    from pipeline.speech.kmeans import Codebook
    from pipeline.vision.tokenizer import load_tokenizer

    units = None
    if vqgan is not None:
        tokenizer = load_tokenizer(vqgan)
        units = ImageUnits(vqgan, tokenizer.fingerprint, tokenizer.grid)
    fingerprint = "" if codebook is None else Codebook.load(codebook).fingerprint
    model = import_captioner(source, out, tokenizer=units, units_fingerprint=fingerprint)
    made = model.config
    typer.echo(f"{out}: input {made.input}, {made.num_hidden_layers} layers, {made.vocab_size} ids")


@command.command()
def units(
    source: Annotated[Path, typer.Argument(help="The file, or the folder of .unit files.")],
    codebook: Annotated[Path, typer.Option(help="The codebook.safetensors that the units are numbers of.")],
    format: Annotated[
        Literal["fairseq", "textless", "km", "unit", "npy"],
        typer.Option(
            help="fairseq: name|units. textless: name<tab>units. km: lines, with --tsv. "
            "unit: .unit files. npy: a feature dump with its .len, and --tsv."
        ),
    ] = "fairseq",
    tsv: Annotated[Path | None, typer.Option(help="km, npy: the .tsv that names the utterances.")] = None,
    durations: Annotated[Path | None, typer.Option(help="Durations in frames, in the same form.")] = None,
    manifests: Annotated[Path, typer.Option(help="Rows whose recordings these are.")] = Path("manifests"),
    out: Annotated[Path, typer.Option(help="Write here, as the stage units does.")] = Path("data/units"),
    max_reject_fraction: Annotated[float, typer.Option(min=0, max=1, help="Captions without units at most.")] = 0.01,
) -> None:
    """Units that another program made -> data/units, in place of the stage units; recordings matched by name."""
    from functools import partial

    from pipeline.files import fingerprint, sha256_file, write_json
    from pipeline.manifest import read_rows
    from pipeline.runner import code_fingerprint, run_shards
    from pipeline.speech.kmeans import Codebook
    from pipeline.tokens import exchange
    from pipeline.tokens.join import choose_shards
    from stages._settings import from_environment

    loaded = Codebook.load(codebook)
    if format == "npy":
        found = exchange.read_features(source, tsv, loaded.assign)
    else:
        found = exchange.read_foreign_units(source, format, tsv=tsv, durations=durations)
    shards, _ = choose_shards(manifests)
    rows = [row for name in shards for row in read_rows(manifests / f"{name}.jsonl")]
    matched = exchange.match_names(rows, found)
    facts = {**loaded.metadata, "codebook_fingerprint": loaded.fingerprint, "num_units": len(loaded.centroids)}
    if not found.durations and not exchange.has_repeats(found):
        facts["durations"] = "unknown"
        typer.echo("no unit is said twice in a row and there are no --durations: each is written as one frame")
    digests = [sha256_file(path) for path in (source, tsv, durations) if path is not None and path.is_file()]
    content = {name: ids.tolist() for name, ids in found.units.items()} if source.is_dir() else ""
    report = run_shards(
        partial(exchange.import_shard, exchange.UnitsImport(manifests, found, matched, len(loaded.centroids))),
        shards,
        out,
        scratch_dir=from_environment().scratch_dir,
        fingerprint=fingerprint(
            [digests, content, facts, code_fingerprint([exchange])]
            + [sha256_file(manifests / f"{name}.jsonl") for name in shards]
        ),
        num_workers=1,
        label="units",
        max_reject_fraction=max_reject_fraction,
        num_items=sum(len(row.captions) for row in rows),
        finish=lambda folder, _: write_json(folder / "units.json", facts),
    )
    unused = len(found.units) - len(set(matched.values()))
    typer.echo(f"{out}: {report.counts.get('utterances', 0)} captions, {len(report.rejects)} without units")
    if unused:
        typer.echo(f"  {unused} utterances of {source} belong to no caption of {manifests}")


@command.command()
def images(
    source: Annotated[Path, typer.Argument(help="SeiT's <name>.data.bin.gz, with <name>.index.npy.gz beside it.")],
    names: Annotated[Path, typer.Option(help="Text file: the archive's pictures in order, a path a line.")],
    vqgan: Annotated[Path, typer.Option(help="Folder of the tokenizer that made them: `import vqgan`.")],
    manifests: Annotated[Path, typer.Option(help="Rows whose pictures these are.")] = Path("manifests"),
    out: Annotated[Path, typer.Option(help="Write here, as the stage images does.")] = Path("data/images"),
    max_reject_fraction: Annotated[float, typer.Option(min=0, max=1, help="Pictures without tokens at most.")] = 0.01,
) -> None:
    """An archive of SeiT's -> data/images, in place of the stage images; pictures matched by name.

    A tokenizer that keeps the centre of its grid (--crop-tokens of `import vqgan`) takes the centre of whole grids.
    """
    from functools import partial

    from pipeline.files import fingerprint, sha256_file, write_json
    from pipeline.manifest import read_rows
    from pipeline.runner import code_fingerprint, run_shards
    from pipeline.tokens import seit
    from pipeline.tokens.join import choose_shards
    from pipeline.vision.tokenizer import facts_of, load_tokenizer
    from stages._settings import from_environment

    scratch = from_environment().scratch_dir
    model = load_tokenizer(vqgan)
    facts = facts_of(model)
    shards, _ = choose_shards(manifests)
    rows = [row for name in shards for row in read_rows(manifests / f"{name}.jsonl")]
    files = [path for path in (source, seit.index_path(source), names) if path.is_file()]
    digest = fingerprint(
        [[sha256_file(path) for path in files], facts, code_fingerprint([seit])]
        + [sha256_file(manifests / f"{name}.jsonl") for name in shards]
    )
    with seit.open_archive(source, names, scratch / f"seit-{digest}.bin") as archive:
        places = seit.match_names(rows, archive)
        work = seit.ImagesImport(manifests, archive, places, model.grid, model.config.grid, model.vocab_size)
        report = run_shards(
            partial(seit.import_shard, work),
            shards,
            out,
            scratch_dir=scratch,
            fingerprint=digest,
            num_workers=1,
            label="images",
            max_reject_fraction=max_reject_fraction,
            num_items=sum(row.image is not None for row in rows),
            finish=lambda folder, _: write_json(folder / "tokenizer.json", facts),
        )
    typer.echo(f"{out}: {report.counts.get('images', 0)} pictures, {len(report.rejects)} without tokens")
    unused = len(archive.names) - len(set(places.values()))
    if unused:
        typer.echo(f"  {unused} entries of {source} belong to no picture of {manifests}")
