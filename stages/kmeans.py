"""kmeans: fit the codebook of speech units. Reads the feature sample, writes codebook.safetensors and metrics."""

from pathlib import Path

from pydantic import Field

from stages._cli import In, Out, Section, StageContext


class Params(Section):
    """The codebook's size and scikit-learn's MiniBatchKMeans settings, or an imported codebook."""

    source: str = Field("fit", description="`fit`, or the path of a codebook.safetensors to take as it is.")
    num_clusters: int = Field(100, ge=2, le=65_535, description="Units in the codebook (K).")
    n_init: int = Field(3, ge=1, description="Initialisations tried (fairseq: 20).")
    batch_size: int = Field(10_000, ge=1, description="Frames of a mini-batch.")
    max_iter: int = Field(50, ge=1, description="Passes over the sample at most.")
    max_no_improvement: int = Field(50, ge=1, description="Batches without a gain before stopping (fairseq: 100).")
    reassignment_ratio: float = Field(0.01, ge=0, description="How readily starved centroids move (fairseq: 0).")
    seed: int = Field(0, ge=0, description="Seed of initialisation and batches.")


def run(
    params: Params,
    context: StageContext,
    *,
    features: In = Path("data/features"),
    alignments: In = Path("data/demo/SpokenCOCO/alignments.jsonl"),
    out: Out = Path("data/kmeans"),
) -> None:
    """Fit the codebook of speech units with scikit-learn and say how good it is.

    Metrics: inertia, usage, dead clusters, perplexity; PNMI, phone and cluster purity where the corpus has
    phoneme alignments.
    """
    from pipeline.files import write_json
    from pipeline.speech.features import read_sample
    from pipeline.speech.kmeans import Codebook, fit_kmeans, fit_report
    from pipeline.speech.unit_quality import sample_quality

    if context.dry_run:
        return
    sample = read_sample(features)
    if params.source == "fit":
        fitted = {
            "fit_frames": sample.source["num_frames"],
            "fit_utterances": sample.source["num_utterances"],
        }
        identity = {key: sample.source[key] for key in sample.source if key not in ("num_frames", "unreadable")}
        codebook = fit_kmeans(
            sample.frames,
            params.num_clusters,
            seed=params.seed,
            n_init=params.n_init,
            batch_size=params.batch_size,
            max_iter=params.max_iter,
            max_no_improvement=params.max_no_improvement,
            reassignment_ratio=params.reassignment_ratio,
            metadata={**identity, **fitted},
        )
    else:
        codebook = Codebook.load(Path(params.source))
    metrics = fit_report(codebook, sample.frames)
    if params.source == "fit":
        codebook = Codebook(codebook.centroids, {**codebook.metadata, "inertia": metrics["inertia"]})
    metrics.update(sample_quality(codebook, sample, alignments))
    codebook.save(out / "codebook.safetensors")
    write_json(out / "metrics.json", metrics)
    print(f"kmeans: codebook {codebook.fingerprint}, " + ", ".join(f"{k} {v}" for k, v in sorted(metrics.items())))
