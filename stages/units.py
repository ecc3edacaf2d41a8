"""units: HuBERT and nearest centroid in one pass. Reads rows, audio and the codebook, writes units parts."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages._cli import In, Out, Section, StageContext

if TYPE_CHECKING:
    from pipeline.speech.hubert import SpeechEncoder
    from pipeline.speech.kmeans import Codebook


class Params(Section):
    """The encoder is the features stage's; the codebook remembers which one it was fitted on."""

    encoder: str = Field("bundled", description="`bundled`, or the folder of a transformers HuBERT model.")
    max_batch_seconds: float = Field(
        24.0, gt=0, description="Padded seconds of audio in a batch; on a CPU no more than its cache holds."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of the encoder's arithmetic. The halves, for GPUs, change about one unit in a thousand."
    )
    chunking: Literal["whole", "fairseq"] = Field(
        "whole", description="`fairseq` cuts utterances above 100 s as fairseq's reader does; `whole` keeps them whole."
    )
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

    from pipeline.files import write_json
    from pipeline.manifest import count_items
    from pipeline.runner import Rate, run_shards
    from pipeline.speech import hubert, kmeans, units
    from pipeline.tokens.join import choose_shards
    from stages._settings import bound_caches, resolve_device

    bound_caches()
    loaded = kmeans.Codebook.load(codebook)
    encoder_dir = hubert.BUNDLED if params.encoder == "bundled" else Path(params.encoder)
    encoder = _encoder(params, loaded, encoder_dir, codebook)
    names, limits = choose_shards(manifests, context.limit)
    num_utterances = sum(count_items(manifests / f"{name}.jsonl", limits.get(name))[1] for name in names)
    if context.dry_run:
        print(f"units: {num_utterances} utterances in {len(names)} shards -> {out}")
        return
    source = units.Source(
        manifest_dir=manifests.absolute(),
        root=root.absolute(),
        encoder_dir=encoder_dir.absolute(),
        codebook_path=codebook.absolute(),
        layer=encoder.layer,
        normalize=encoder.normalize,
        max_batch_samples=round(params.max_batch_seconds * encoder.sample_rate),
        device=resolve_device(context.settings.device),
        precision=params.precision,
        chunking=params.chunking,
        limits=limits,
    )
    torch.set_num_threads(1)  # as in every worker: the number of threads can move the last bit of a feature
    report = run_shards(
        partial(units.units_of_shard, source),
        names,
        out,
        scratch_dir=context.settings.scratch_dir,
        fingerprint=_fingerprint(params, limits, loaded, encoder, [manifests / f"{name}.jsonl" for name in names]),
        num_workers=context.settings.num_workers,
        executor=context.settings.executor,
        label="units",
        max_reject_fraction=params.max_reject_fraction,
        num_items=num_utterances,
        num_threads=1,
        rate=Rate("samples", 1 / encoder.sample_rate, "h of audio an hour"),
        finish=lambda folder, _: write_json(folder / "units.json", _facts(loaded, encoder)),
    )
    context.log(event="units", num_computed=report.num_computed, **report.counts)
    print(f"units: {sum(s.counts['units'] for s in report.shards.values())} units -> {out}")


def _fingerprint(
    params: Params, limits: dict[str, int], codebook: "Codebook", encoder: "SpeechEncoder", row_paths: list[Path]
) -> str:
    """Names the scratch folder by all that decides the units."""
    from pipeline import arithmetic
    from pipeline.files import fingerprint, sha256_file
    from pipeline.runner import code_fingerprint
    from pipeline.speech import hubert, hubert_cpu, kmeans, units

    decides = {
        "params": params.model_dump(),
        "limits": limits,
        "codebook": codebook.fingerprint,
        "encoder": encoder.fingerprint,
        "rows": [sha256_file(path) for path in row_paths],
        "code": code_fingerprint([arithmetic, hubert, hubert_cpu, kmeans, units]),
    }
    return fingerprint(decides)


def _encoder(params: Params, codebook: "Codebook", folder: Path, codebook_path: Path) -> "SpeechEncoder":
    """The encoder as the codebook's was. InputError when it is another."""
    from pipeline.speech.hubert import SpeechEncoder
    from pipeline.speech.units import check_belongs

    layer, normalize = int(codebook.metadata.get("layer", 0)), bool(codebook.metadata.get("normalize", False))
    encoder = SpeechEncoder(folder, layer, normalize, precision=params.precision, chunking=params.chunking)
    check_belongs(codebook, encoder, codebook_path)
    return encoder


def _facts(codebook: "Codebook", encoder: "SpeechEncoder") -> dict[str, Any]:
    """What travels on with the units: where they come from, and how many there are."""
    facts = {**codebook.metadata, "codebook_fingerprint": codebook.fingerprint, "num_units": len(codebook.centroids)}
    if encoder.variant:
        facts["units_variant"] = encoder.variant
    return facts
