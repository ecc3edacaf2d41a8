"""Recordings and pictures that nobody here made, through the same commands: `table` corpora and the preset `digits`.

The data lies outside the repository (`../shared/real`); without it these tests are skipped. Sizes and steps are
small, so captions are not expected to be right. What is expected: nothing is lost on the way, what is learnt from
and what is tested on share nothing, and every promised rung and file is there.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.manifest import Row, read_rejects, read_split, split_names
from pipeline.media import read_audio
from pipeline.tokens.parts import read_images_part, read_units_part
from pipeline.tokens.read import read_samples
from stages.__main__ import build_app

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "real"
FSDD = REAL / "fsdd-5-speakers.tar"
LADDER = ("manifest", "features", "kmeans", "units", "vqgan", "images", "shards", "vocoder", "evaluate")
SMALL = {
    "features": {"num_utterances": 60, "max_frames": 6000},
    "kmeans": {"num_clusters": 50, "n_init": 1, "max_iter": 10},
    "vocoder": {"steps": 20},
    "train": {"steps": 6, "batch_size": 16, "warmup_steps": 2, "evaluate_every": 6, "num_pieces": 20},
    "evaluate": {"bootstrap_samples": 20, "java_metrics": False},
}


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"{path} is not on this machine")


@dataclass(frozen=True)
class Project:
    """A folder with params.yaml and the outputs of the stages in their usual places."""

    folder: Path

    def run(self, stage: str, *flags: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("I2S_WORKERS", "1")
            done = CliRunner().invoke(build_app(), [stage, *flags], catch_exceptions=False)
        assert done.exit_code == 0, (stage, done.output)
        return done.output

    def preset(self, name: str, source: Path, **sections: dict) -> None:
        """`im2speech use`, with the preset's sizes cut down to a trial's."""
        preset = yaml.safe_load((ROOT / "presets" / f"{name}.yaml").read_text())
        for changed in (SMALL, sections):
            for section, values in changed.items():
                preset[section].update(values)
        (self.folder / "presets").mkdir()
        (self.folder / "presets" / f"{name}.yaml").write_text(yaml.safe_dump(preset))
        self.run("use", name, "--root", str(source))

    def run_all(self, stages: tuple[str, ...] = LADDER) -> None:
        root = yaml.safe_load((self.folder / "params.yaml").read_text())["manifest"]["root"]
        for stage in stages:
            reads_corpus = stage not in ("manifest", "kmeans", "train")
            self.run(stage, *(("--root", root) if reads_corpus else ()))

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    def rows(self) -> dict[str, list[Row]]:
        return {name: read_split(self.folder / "manifests", name) for name in split_names(self.folder / "manifests")}


def project(folder: Path) -> Project:
    folder.mkdir()
    return Project(folder)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = project(tmp_path_factory.mktemp("real") / "coco20")
    made.preset(
        "table", REAL / "coco20", manifest={"val_fraction": 0.1, "test_fraction": 0.3}, evaluate={"max_items": 3}
    )
    made.run_all()
    yield made


@pytest.fixture(scope="module")
def librivox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = project(tmp_path_factory.mktemp("real") / "librivox")
    everything = {"language_model": "corpus", "splits": ["train"]}
    made.preset("table", REAL / "librivox", manifest={"split": "train"}, evaluate=everything)
    made.run_all()
    yield made


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = project(tmp_path_factory.mktemp("real") / "digits")
    counts = {"train": 60, "val": 4, "test": 8, "test_speaker": 8}
    small = {"use": {f"num_{split}_images": count for split, count in counts.items()} | {"captions_per_train_image": 2}}
    made.preset("digits", FSDD, **small, manifest={"rows_per_shard": 25})
    made.run_all((*LADDER[:-1], "train", "evaluate"))
    yield made


def listed(source: Path) -> tuple[int, int]:
    """(lines, captions) of a table as it was given."""
    lines = [json.loads(line) for line in (source / "table.jsonl").read_text().splitlines()]
    return len(lines), sum(len(line.get("captions", [line])) for line in lines)


def nothing_is_lost(made: Project, num_rows: int, num_captions: int) -> None:
    """What goes into a step comes out of it or is a reject, from the table to the shards."""
    rows = [row for split in made.rows().values() for row in split]
    rejects = read_rejects(made.folder / "manifests/rejects.jsonl")
    assert len(rows) + sum(not reject.id for reject in rejects) == num_rows
    captions = [caption.id for row in rows for caption in row.captions]
    assert len(captions) + sum(bool(reject.id) for reject in rejects) == num_captions

    units = [read_units_part(path) for path in sorted((made.folder / "data/units").glob("*/*.npz"))]
    rejects = read_rejects(made.folder / "data/units/rejects.jsonl")
    spoken = [str(id_) for part in units for id_ in part.ids if len(part.utterance(part.index()[str(id_)])[0])]
    assert sorted([*spoken, *(reject.id for reject in rejects)]) == sorted(captions)

    pictures = [row.key for row in rows if row.image is not None]
    parts = [read_images_part(path) for path in sorted((made.folder / "data/images").glob("*/*.npz"))]
    rejects = read_rejects(made.folder / "data/images/rejects.jsonl")
    assert sorted([*(str(key) for part in parts for key in part.keys), *(r.key for r in rejects)]) == sorted(pictures)

    samples = [s for split in made.rows() for s in read_samples(made.folder / "data/shards", split)]
    rejects = read_rejects(made.folder / "data/shards/rejects.jsonl")
    assert len(samples) + len({reject.key for reject in rejects if not reject.id}) == len(rows)
    joined = [caption.id for sample in samples for caption in sample.captions]
    assert sorted(set(joined) | {reject.id for reject in rejects if reject.id}) == sorted(captions)
    assert sum(sample.image is not None for sample in samples) == sum(len(part.keys) for part in parts)


def the_speech_rungs_have_a_wer(made: Project, split: str, num_items: int) -> None:
    metrics = made.json("data/evaluate/metrics.json")[split]
    assert set(metrics) == {"ground_truth", "resynthesis"}
    for rung in metrics.values():
        assert rung["wer"] >= 0 and rung["num_items"] == num_items
    spoken = sorted((made.folder / "data/evaluate/audio" / split / "resynthesis").glob("*.wav"))
    assert len(spoken) == num_items and all(len(read_audio(path)) > 1600 for path in spoken)
    assert (made.folder / "data/evaluate/report/index.html").stat().st_size > 1000


@needs(REAL / "coco20/table.jsonl")
def test_photographs_with_spoken_captions_lose_nothing_from_table_to_shards(coco: Project) -> None:
    assert {name: len(rows) for name, rows in coco.rows().items()} == {"train": 12, "val": 2, "test": 6}
    assert listed(REAL / "coco20") == (20, 40)
    nothing_is_lost(coco, 20, 40)
    assert coco.json("data/shards/test/index.json")["totals"]["images"] == 6


@needs(REAL / "coco20/table.jsonl")
def test_photographs_with_spoken_captions_go_through_the_speech_rungs(coco: Project) -> None:
    the_speech_rungs_have_a_wer(coco, "test", 3)
    assert coco.json("data/vqgan/metrics.json")["psnr"] > 0


@needs(REAL / "librivox/table.jsonl")
def test_speech_without_pictures_loses_nothing_from_table_to_shards(librivox: Project) -> None:
    assert all(row.image is None for rows in librivox.rows().values() for row in rows)
    assert listed(REAL / "librivox") == (3, 3)
    nothing_is_lost(librivox, 3, 3)
    assert librivox.json("data/shards/train/index.json")["totals"]["images"] == 0


@needs(REAL / "librivox/table.jsonl")
def test_a_person_reading_goes_through_the_speech_rungs(librivox: Project) -> None:
    the_speech_rungs_have_a_wer(librivox, "train", 3)
    # Its words known, a person who reads clearly is understood.
    assert librivox.json("data/evaluate/metrics.json")["train"]["ground_truth"]["wer"] < 50


@needs(FSDD)
def test_digits_lose_nothing_and_what_is_tested_was_not_learnt_from(digits: Project) -> None:
    rows = digits.rows()
    assert {name: len(found) for name, found in rows.items()} == {"train": 60, "val": 4, "test": 8, "test_speaker": 8}
    nothing_is_lost(digits, 80, 60 * 2 + 4 + 8 + 8)
    assert digits.json("manifests/summary.json")["leaks"] == 0
    pictures = {name: {row.image.sha256 for row in found if row.image} for name, found in rows.items()}
    sounds = {name: {c.sha256 for row in found for c in row.captions} for name, found in rows.items()}
    speakers = {name: {c.speaker for row in found for c in row.captions} for name, found in rows.items()}
    for name in ("val", "test", "test_speaker"):
        assert not pictures[name] & pictures["train"] and not sounds[name] & sounds["train"], name
    assert speakers["test_speaker"] == {"george"} and "george" not in speakers["train"] | speakers["val"]
    assert speakers["test"] <= speakers["train"]


@needs(FSDD)
def test_digits_are_trained_and_evaluated_with_every_file(digits: Project) -> None:
    data = digits.folder / "data"
    metrics = digits.json("data/evaluate/metrics.json")
    assert set(metrics) == {"test", "test_speaker"}
    for rungs in metrics.values():
        assert set(rungs) == {"ground_truth", "resynthesis", "prediction", "chance"}
        for rung in rungs.values():
            assert {"wer", "digit", "exact", "bleu1"} <= set(rung) and rung["num_items"] == 8
    assert metrics["test"]["ground_truth"]["digit"] > 50
    predictions = [json.loads(line) for line in (data / "evaluate/predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 16
    for name in (
        "vqgan/reconstructions.png",
        "vocoder/model.safetensors",
        "train/model/model.safetensors",
        "train/model/config.json",
        "train/model/generation_config.json",
        "train/metrics.json",
        "shards/README.md",
        "shards/test_speaker/index.json",
        "evaluate/report/index.html",
        "evaluate/plots/attributes.csv",
    ):
        assert (data / name).is_file(), name
    vocabulary = UnitVocabulary.load(data / "train/model/unit_vocabulary.json")
    assert vocabulary.codebook_fingerprint == digits.json("data/units/units.json")["codebook_fingerprint"]


@needs(FSDD)
def test_digits_are_the_same_when_made_again(digits: Project, tmp_path: Path) -> None:
    shutil.copytree(digits.folder / "presets", tmp_path / "presets")
    again = Project(tmp_path)
    again.run("use", "digits", "--root", str(FSDD), "--out", "again")
    for path in sorted((digits.folder / "data/corpus/digits").rglob("*")):
        if path.is_file():
            assert (
                tmp_path / "again" / path.relative_to(digits.folder / "data/corpus/digits")
            ).read_bytes() == path.read_bytes()
