"""units: HuBERT and nearest centroid in one pass. Reads rows, audio and the codebook, writes units parts."""

from functools import partial
from pathlib import Path

from pydantic import Field

from stages._cli import In, Out, Section, StageContext


class Params(Section):
    """The encoder is the features stage's; the codebook remembers which one it was fitted on."""

    encoder: str = Field("bundled", description="`bundled`, or the folder of a transformers HuBERT model.")
    max_batch_seconds: float = Field(24.0, gt=0, description="Padded seconds of audio in a batch.")
    max_reject_fraction: float = Field(0.01, ge=0, le=1, description="More rejected utterances than this: fail.")


def run(
    params: Params,
    context: StageContext,
    *,
    manifests: In = Path("manifests"),
    root: In = Path("data/demo"),
    codebook: In = Path("data/kmeans/codebook.safetensors"),
    out: Out = Path("data/units"),
) -> None:
    """Turn every utterance into speech units and durations: batched, exact, resumable, shard by shard.

    Units are the same alone and in any batch. Writes <split>/NNNNN.npz, rejects.jsonl, summary.json and
    units.json (the facts of encoder and codebook that travel on with the units).
    """
    import torch

    from pipeline.files import fingerprint, sha256_file, write_json
    from pipeline.manifest import read_rows
    from pipeline.runner import code_fingerprint, run_shards
    from pipeline.speech import hubert, kmeans, units
    from pipeline.tokens.join import choose_shards
    from stages._settings import resolve_device

    loaded = kmeans.Codebook.load(codebook)
    encoder_dir = hubert.BUNDLED if params.encoder == "bundled" else Path(params.encoder)
    layer, normalize = int(loaded.metadata.get("layer", 0)), bool(loaded.metadata.get("normalize", False))
    encoder = hubert.SpeechEncoder(encoder_dir, layer, normalize)
    units.check_belongs(loaded, encoder, codebook)
    names, limits = choose_shards(manifests, context.limit)
    rows = {name: read_rows(manifests / f"{name}.jsonl")[: limits.get(name)] for name in names}
    num_utterances = sum(len(row.captions) for shard in rows.values() for row in shard)
    if context.dry_run:
        print(f"units: {num_utterances} utterances in {len(names)} shards -> {out}")
        return
    source = units.Source(
        manifest_dir=manifests.absolute(),
        root=root.absolute(),
        encoder_dir=encoder_dir.absolute(),
        codebook_path=codebook.absolute(),
        layer=layer,
        normalize=normalize,
        max_batch_samples=round(params.max_batch_seconds * encoder.sample_rate),
        device=resolve_device(context.settings.device),
        limits=limits,
    )
    facts = {**loaded.metadata, "codebook_fingerprint": loaded.fingerprint, "num_units": len(loaded.centroids)}
    decides = {
        "params": params.model_dump(),
        "limits": limits,
        "codebook": loaded.fingerprint,
        "encoder": encoder.fingerprint,
        "rows": [sha256_file(manifests / f"{name}.jsonl") for name in names],
        "code": code_fingerprint([hubert, kmeans, units]),
    }
    torch.set_num_threads(1)  # as in every worker: the number of threads can move the last bit of a feature
    report = run_shards(
        partial(units.units_of_shard, source),
        names,
        out,
        scratch_dir=context.settings.scratch_dir,
        fingerprint=fingerprint(decides),
        num_workers=context.settings.num_workers,
        executor=context.settings.executor,
        label="units",
        max_reject_fraction=params.max_reject_fraction,
        num_items=num_utterances,
        num_threads=1,
        finish=lambda folder, _: write_json(folder / "units.json", facts),
    )
    print(f"units: {sum(s.counts['units'] for s in report.shards.values())} units -> {out}")
