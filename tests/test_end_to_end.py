"""A stranger's run in miniature: `dvc repro` on a tiny world, again, an experiment, a caption; then bad input.

Every stage is the real one with the bundled models; only sizes and steps are small, so the captions are
not expected to be right. What is expected: every promised file, equal counts, nothing done twice.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile
import webdataset

from tests.tiny_project import commit, make_project, sh

TINY = {
    "demo": {
        "num_train_images": 40,
        "num_restval_images": 2,
        "num_val_images": 4,
        "num_test_images": 6,
        "num_novel_images": 5,
        "captions_per_test_image": 2,
    },
    "manifest": {"rows_per_shard": 16},
    "features": {"num_utterances": 30, "max_frames": 4000},
    "kmeans": {"num_clusters": 40, "n_init": 1, "max_iter": 10},
    "vocoder": {"steps": 20},
    "train": {"steps": 30, "evaluate_every": 15, "num_pieces": 20, "max_length": 300},
    "evaluate": {"bootstrap_samples": 50, "java_metrics": False},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The repository's files in a fresh git repository, with tiny parameters, after one `dvc repro`."""
    folder = make_project(tmp_path_factory.mktemp("project") / "im2speech", TINY)
    sh("dvc", "repro", cwd=folder)
    return folder


def read(path):
    return json.loads(path.read_text())


def test_every_promised_file_is_there(project):
    for name in (
        "manifests/train/00000.jsonl",
        "manifests/summary.json",
        "data/kmeans/codebook.safetensors",
        "data/units/test_novel/00000.npz",
        "data/images/train/00002.npz",
        "data/shards/train/00000.tar",
        "data/shards/train/index.json",
        "data/shards/README.md",
        "data/vocoder/model.safetensors",
        "data/train/model/unit_vocabulary.json",
        "data/train/model/generation_config.json",
        "data/evaluate/predictions.jsonl",
        "data/evaluate/report/index.html",
    ):
        assert (project / name).is_file(), name


def test_the_ladder_has_its_rungs_and_metrics(project):
    metrics = read(project / "data/evaluate/metrics.json")
    for split in ("test", "test_novel"):
        assert set(metrics[split]) >= {"ground_truth", "resynthesis", "prediction", "chance"}
        for rung in ("prediction", "chance"):
            assert {"bleu1", "bleu4", "rouge_l", "cider", "colour", "shape", "size", "relation", "exact"} <= set(
                metrics[split][rung]
            )
        assert metrics[split]["ground_truth"]["wer"] < 15 and metrics[split]["ground_truth"]["num_items"] > 0


def test_a_second_repro_runs_nothing(project):
    done = sh("dvc", "repro", cwd=project)
    assert "Running stage" not in done.stdout and "up to date" in done.stdout


def test_shards_open_in_stock_webdataset(project):
    url = str(project / "data/shards/train/{00000..00002}.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    rows = [line for path in (project / "manifests/train").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(samples) == len(rows) == 42
    for sample in samples:
        assert sample["image.npy"].shape == (16, 16) and sample["image.npy"].dtype == np.uint16
        assert sum(caption["num_units"] for caption in sample["json"]["captions"]) == len(sample["units.npy"])
        assert len(sample["units.npy"]) == len(sample["durations.npy"])


def test_metrics_and_plots_are_shown(project):
    assert "bleu4" in sh("dvc", "metrics", "show", "--json", cwd=project).stdout
    sh("dvc", "plots", "show", "--out", project / "plots_html", cwd=project)
    assert (project / "plots_html" / "index.html").stat().st_size > 1000


def test_caption_speaks_a_wav_for_an_image(project, tmp_path):
    image = next((project / "data/demo/val2014").glob("*.jpg"))
    sh(sys.executable, "-m", "stages", "caption", image, "--out", tmp_path, cwd=project)
    draw = ["--temperature", "2", "--num-samples", "4", "--num-best", "2", "--seed", "3"]
    for folder in ("one", "two"):
        sh(sys.executable, "-m", "stages", "caption", image, "--out", tmp_path / folder, *draw, cwd=project)
    best = [sorted((tmp_path / folder).iterdir()) for folder in ("one", "two")]
    assert len(best[0]) == 2 and [a.read_bytes() for a in best[0]] == [b.read_bytes() for b in best[1]]
    samples, rate = soundfile.read(tmp_path / f"{image.stem}.wav")
    assert rate == 16_000 and len(samples) > 1600 and np.abs(samples).max() > 0.01


def test_from_python(project):
    code = (
        "from pipeline.captioner import ImageToSpeech\n"
        "from pathlib import Path\n"
        "speak = ImageToSpeech.from_pretrained('data/train/model')\n"
        "speech = speak(next(Path('data/demo/val2014').glob('*.jpg')))\n"
        "print(len(speech.units), speech.waveform.dtype, speech.sample_rate)"
    )
    assert "float32 16000" in sh(sys.executable, "-c", code, cwd=project).stdout


def test_units_are_the_same_for_another_number_of_workers(project, tmp_path):
    command = [sys.executable, "-m", "stages", "units", "--out", tmp_path / "units"]
    environment = {**os.environ, "I2S_WORKERS": "1", "I2S_SCRATCH": str(tmp_path / "scratch")}
    subprocess.run(list(map(str, command)), cwd=project, env=environment, check=True, capture_output=True)
    for path in sorted((project / "data/units").glob("*/*.npz")):
        other = tmp_path / "units" / path.parent.name / path.name
        assert other.read_bytes() == path.read_bytes(), path


def test_an_experiment_changes_the_codebook_and_what_hangs_on_it(project):
    before = read(project / "data/units/units.json")["codebook_fingerprint"]
    commit(project, "results")
    sh("dvc", "exp", "run", "-S", "kmeans.num_clusters=30", cwd=project)
    facts = read(project / "data/units/units.json")
    assert facts["num_units"] == 30 and facts["codebook_fingerprint"] != before
    assert read(project / "data/train/model/unit_vocabulary.json")["codebook_fingerprint"] != before


def test_bad_recordings_and_images_become_rejects_and_the_run_goes_on(project, tmp_path):
    root = tmp_path / "demo"
    shutil.copytree(project / "data/demo", root)
    wav, other = sorted((root / "SpokenCOCO/wavs").rglob("*.wav"))[:2]
    wav.unlink()
    other.write_bytes(b"RIFF, but no more")
    sorted((root / "train2014").glob("*.jpg"))[0].write_bytes(b"not a picture")
    base = [sys.executable, "-m", "stages", "manifest", "--root", root, "--out", tmp_path / "manifests"]
    refused = sh(*base, "--max-reject-fraction", "0.0001", cwd=project, check=False)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    sh(*base, "--max-reject-fraction", "0.2", cwd=project)
    rejects = [json.loads(line) for line in (tmp_path / "manifests/rejects.jsonl").read_text().splitlines()]
    assert len(rejects) >= 3 and all(reject["reason"] for reject in rejects)


def test_a_codebook_of_another_encoder_is_refused_by_both_fingerprints(project, tmp_path):
    from pipeline.speech.kmeans import Codebook

    own = Codebook.load(project / "data/kmeans/codebook.safetensors")
    stranger = Codebook(own.centroids, {**own.metadata, "encoder_sha256": "0" * 64})
    stranger.save(tmp_path / "codebook.safetensors")
    command = [sys.executable, "-m", "stages", "units", "--codebook", tmp_path / "codebook.safetensors"]
    done = sh(*command, "--out", tmp_path / "units", cwd=project, check=False)
    assert done.returncode == 2 and stranger.fingerprint in done.stderr and "encoder" in done.stderr
    assert not (tmp_path / "units").exists()


def test_tars_hold_nothing_of_this_machine(project):
    for path in (project / "data/shards").glob("*/*.tar"):
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar} == {(0, 0, 0, "")}
    for path in (project / "data").rglob("*.json"):
        if "demo" not in path.parts:
            assert str(project) not in path.read_text(), path
