"""kmeans: fit the codebook of speech units. Reads the feature sample, writes codebook.safetensors and metrics."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from stages._cli import In, Out, Section, StageContext


class Params(Section):
    """The codebook's size and recipe, or an imported codebook."""

    source: str = Field("fit", description="`fit`, or the path of a codebook.safetensors to take as it is.")
    num_clusters: int = Field(100, ge=2, le=65_535, description="Units in the codebook (K).")
    more_clusters: list[int] = Field([], description="Further K, each written to codebook-<K>.safetensors.")
    recipe: Literal["minibatch", "lloyd", "fairseq", "gslm"] = Field(
        "minibatch",
        description="`lloyd`: for large samples, all K in the same passes, on a GPU where there is one; "
        "`fairseq`, `gslm`: fairseq's recipes; `minibatch`: the next five.",
    )
    n_init: int = Field(3, ge=1, description="minibatch: initialisations tried.")
    batch_size: int = Field(10_000, ge=1, description="minibatch: frames of a batch.")
    max_iter: int = Field(50, ge=1, description="minibatch: passes over the sample at most.")
    max_no_improvement: int = Field(50, ge=1, description="minibatch: batches without a gain before stopping.")
    reassignment_ratio: float = Field(0.01, ge=0, description="minibatch: how readily starved centroids move.")
    seed: int = Field(0, ge=0, description="Seed of initialisation and batches.")


def run(
    params: Params,
    context: StageContext,
    *,
    features: In = Path("data/features"),
    alignments: In = Path("data/demo/SpokenCOCO/alignments.jsonl"),
    out: Out = Path("data/kmeans"),
) -> None:
    """Fit the codebook of speech units and say how good it is.

    Metrics: inertia, usage, dead clusters, perplexity; PNMI, phone and cluster purity where the corpus has
    phoneme alignments. With --more-clusters further codebooks and their metrics are written beside the first.
    """
    from pipeline.files import write_json
    from pipeline.speech.features import read_sample
    from pipeline.speech.kmeans import Codebook, fit_codebooks, fit_report
    from pipeline.speech.unit_quality import sample_quality
    from stages._settings import resolve_device

    if context.dry_run:
        return
    sample = read_sample(features)
    if params.source == "fit":
        fitted = {
            "fit_frames": sample.source["num_frames"],
            "fit_utterances": sample.source["num_utterances"],
        }
        identity = {key: sample.source[key] for key in sample.source if key not in ("num_frames", "unreadable")}
        minibatch = ("n_init", "batch_size", "max_iter", "max_no_improvement", "reassignment_ratio")
        codebooks = fit_codebooks(
            sample.frames,
            [params.num_clusters, *params.more_clusters],
            params.recipe,
            seed=params.seed,
            device=resolve_device(context.settings.device) if params.recipe == "lloyd" else "cpu",
            num_threads=context.settings.num_threads,
            metadata={**identity, **fitted},
            **{name: getattr(params, name) for name in minibatch},
        )
    else:
        codebooks = [Codebook.load(Path(params.source))]
    for number, codebook in enumerate(codebooks):
        metrics = fit_report(codebook, sample.frames)
        if params.source == "fit":
            codebook = Codebook(codebook.centroids, {**codebook.metadata, "inertia": metrics["inertia"]})
        metrics.update(sample_quality(codebook, sample, alignments))
        suffix = f"-{len(codebook.centroids)}" if number else ""
        codebook.save(out / f"codebook{suffix}.safetensors")
        write_json(out / f"metrics{suffix}.json", metrics)
        figures = ", ".join(f"{k} {v}" for k, v in sorted(metrics.items()))
        print(f"kmeans: codebook {codebook.fingerprint}, {figures}")
