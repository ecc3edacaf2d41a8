"""Every file is opened; what cannot be used is a reject with a reason; nothing is lost on the way."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import manifest
from pipeline.corpora.build import build, refuse_too_many_rejects, write
from pipeline.corpora.check import Limits
from pipeline.corpora.unchecked import Options
from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.media import write_wav

REAL = Path(__file__).parents[3] / "../shared/real"


def spoil(root: Path) -> None:
    """Six faults: a missing wav, a text for a wav, a silent wav, a cut jpg, an empty jpg, a repeated id."""
    wavs = root / "SpokenCOCO/wavs"
    (wavs / "train/0/m0-HIT_1_0.wav").unlink()
    (wavs / "train/0/m0-HIT_2_0.wav").write_text("not found")
    write_wav(wavs / "train/0/m0-HIT_2_1.wav", np.zeros(8000, np.float32), 16000)
    cut = root / "val2014/COCO_val2014_000000000004.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (root / "val2014/COCO_val2014_000000000006.jpg").write_bytes(b"")
    path = root / "SpokenCOCO/SpokenCOCO_val.json"
    document = json.loads(path.read_text())
    document["data"][2]["captions"][1]["uttid"] = document["data"][2]["captions"][0]["uttid"]
    path.write_text(json.dumps(document))


def test_sound_corpus_to_files_and_back(spokencoco: Path, tmp_path: Path) -> None:
    built = build(spokencoco, "spokencoco", Options(), Limits())
    summary = write(tmp_path / "m", built, rows_per_shard=2, seed=1)
    assert manifest.split_names(tmp_path / "m") == ["test", "test_novel", "train", "val"]
    assert len(manifest.read_split(tmp_path / "m", "train")) == 3
    row = manifest.read_split(tmp_path / "m", "test")[0]
    assert (row.image.width, row.image.height, len(row.captions)) == (32, 24, 6)
    assert (row.captions[0].num_samples, row.captions[0].sample_rate) == (8000, 16000)
    assert summary["read"] == {"captions": 16, "rows": 6} and summary["rejected"] == {
        "captions": 0,
        "rows": 0,
    }
    assert read_json(tmp_path / "m/leaks.json") == []


def test_any_number_of_workers_gives_the_same_bytes(spokencoco: Path, tmp_path: Path) -> None:
    spoil(spokencoco)
    for workers in (1, 2):
        built = build(spokencoco, "spokencoco", Options(), Limits(), num_workers=workers)
        write(tmp_path / f"m{workers}", built, rows_per_shard=2, seed=1)
    files = [path.relative_to(tmp_path / "m1") for path in sorted((tmp_path / "m1").rglob("*.json*"))]
    assert len(files) > 4
    for file in files:
        assert (tmp_path / "m1" / file).read_bytes() == (tmp_path / "m2" / file).read_bytes(), file


def test_faults_become_rejects_and_the_counts_add_up(spokencoco: Path, tmp_path: Path) -> None:
    spoil(spokencoco)
    built = build(spokencoco, "spokencoco", Options(), Limits())
    summary = write(tmp_path / "m", built, rows_per_shard=2, seed=1)
    kept_rows = sum(counts["rows"] for counts in summary["splits"].values())
    kept_captions = sum(counts["captions"] for counts in summary["splits"].values())
    assert summary["read"] == {"captions": 16, "rows": 6}
    assert kept_rows + summary["rejected"]["rows"] == 6
    assert kept_captions + summary["rejected"]["captions"] == 16
    rejects = manifest.read_rejects(tmp_path / "m/rejects.jsonl")
    reasons = {(reject.key[-1], reject.id): reject.reason for reject in rejects}
    assert reasons["1", "m0-HIT_1_0"] == "no such file [SpokenCOCO/wavs/train/0/m0-HIT_1_0.wav]"
    assert "cannot be read as audio" in reasons["2", "m0-HIT_2_0"]
    assert "silent" in reasons["2", "m0-HIT_2_1"]
    assert reasons["2", ""] == "no caption is left"
    assert "cannot be read as an image" in reasons["4", ""]
    assert "the file is empty" in reasons["6", ""]
    assert "row rejected" in reasons["6", "m0-HIT_6_0"]
    assert "the caption id occurs before" in reasons["5", "m0-HIT_5_0"]
    assert str(spokencoco) not in (tmp_path / "m/rejects.jsonl").read_text()


def test_too_many_rejects_fail_with_reasons_and_a_list(spokencoco: Path, tmp_path: Path) -> None:
    spoil(spokencoco)
    built = build(spokencoco, "spokencoco", Options(), Limits())
    refuse_too_many_rejects(built, 0.9, tmp_path / "rejects.jsonl")
    assert not (tmp_path / "rejects.jsonl").exists()
    with pytest.raises(InputError, match=r"50.0% of the rows.*Most frequent.*rejects.jsonl"):
        refuse_too_many_rejects(built, 0.1, tmp_path / "rejects.jsonl")
    assert len(manifest.read_rejects(tmp_path / "rejects.jsonl")) == len(built.rejects)


def test_leaks_are_reported(spokencoco: Path, tmp_path: Path) -> None:
    train = next((spokencoco / "train2014").iterdir())
    (spokencoco / "val2014/COCO_val2014_000000000005.jpg").write_bytes(train.read_bytes())
    write(tmp_path / "m", build(spokencoco, "spokencoco", Options(), Limits()), rows_per_shard=9, seed=0)
    leaks = read_json(tmp_path / "m/leaks.json")
    assert len(leaks) == 1 and leaks[0]["places"][0] == "test:COCO_val2014_000000000005"


def test_limits_and_choices(spokencoco: Path) -> None:
    def captions(**limits: float) -> int:
        return build(spokencoco, "spokencoco", Options(), Limits(**limits)).num_captions

    assert captions(max_captions=1) == 6
    with pytest.raises(InputError, match="not one row can be used.*longer than 0.2 s"):
        captions(max_seconds=0.2)
    with pytest.raises(InputError, match="not one row can be used.*shorter than 1 s"):
        captions(min_seconds=1)
    built = build(spokencoco, "spokencoco", Options(), Limits(max_captions=5), splits=["test", "val"])
    assert list(built.splits) == ["test", "val"] and built.num_capped == 1
    with pytest.raises(InputError, match="no split 'dev'; the corpus has test, test_novel, train, val"):
        build(spokencoco, "spokencoco", Options(), Limits(), splits=["dev"])
    limited = build(spokencoco, "spokencoco", Options(), Limits(), limit=1)
    assert all(len(rows) == 1 for rows in limited.splits.values())


def test_paths_out_of_the_root_are_rejects(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    write_wav(tmp_path / "x.wav", np.full(8000, 0.1, np.float32), 16000)
    write_wav(tmp_path / "c/y.wav", np.full(8000, 0.1, np.float32), 16000)
    (tmp_path / "c/table.jsonl").write_text('{"audio": "../x.wav"}\n{"audio": "y.wav"}\n')
    built = build(tmp_path / "c", "table", Options(split="test"), Limits())
    assert [row.key for row in built.splits["test"]] == ["y"]
    assert {reject.reason for reject in built.rejects if reject.id} == {"lies outside the corpus root [../x.wav]"}


@pytest.mark.parametrize(("name", "rows", "captions"), [("coco20", 20, 40), ("librivox", 3, 3)])
def test_real_tables_go_through_with_nothing_lost(name: str, rows: int, captions: int, tmp_path: Path) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not there")
    built = build(REAL / name, "table", Options(), Limits())
    assert (built.num_rows, built.num_captions, built.rejects) == (rows, captions, [])
    write(tmp_path, built, rows_per_shard=8, seed=0)
    read = [row for split in manifest.split_names(tmp_path) for row in manifest.read_split(tmp_path, split)]
    assert len(read) == rows
    assert all((row.image is None) == (name == "librivox") for row in read)
