"""Units in and out: fairseq's and textlesslib's formats, .unit files, names that lost letters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.manifest import Caption, Row, read_rejects, read_split, write_splits
from pipeline.speech.kmeans import Codebook
from pipeline.tokens.parts import read_units_part, restore
from stages.tools import export, import_
from tests.pipeline.checkpoints.hostile import WRAPPINGS, Payload

NAMES = ("wavs/0/anna_1.wav", "wavs/0/calf_wav.wav", "wavs/1/ben-2.wav")
FRAMES = {"anna_1": [5, 5, 5, 2, 2, 9], "calf_wav": [0, 0, 7], "ben-2": [3, 3, 3, 3]}


def run(tool, *arguments: str) -> str:
    return CliRunner().invoke(tool.command, list(map(str, arguments)), catch_exceptions=False).output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [
        Row(f"k{n}", None, (Caption(f"id{n}", audio, 16000, 16000, "0" * 64, "", ""),)) for n, audio in enumerate(NAMES)
    ]
    write_splits(tmp_path / "manifests", {"train": rows[:2], "val": rows[2:]}, rows_per_shard=1, seed=0)
    Codebook(np.zeros((10, 4), np.float32)).save(tmp_path / "codebook.safetensors")
    return tmp_path


def imported(folder: Path) -> dict[str, list[int]]:
    found = {}
    for split in ("train", "val"):
        for path in sorted((folder / "data/units" / split).glob("*.npz")):
            part = read_units_part(path)
            for number, name in enumerate(part.ids):
                found[str(name)] = restore(*part.utterance(number)).tolist()
    return found


EXPECTED = {f"id{n}": list(frames) for n, frames in enumerate(FRAMES.values())}


def write(folder: Path, format: str, frames: dict[str, list[int]] = FRAMES) -> list[str]:
    """The file of a format, written by hand; gives the arguments that name it."""
    spoken = {name: " ".join(map(str, ids)) for name, ids in frames.items()}
    if format == "fairseq":
        (folder / "u.txt").write_text("".join(f"{name}|{text}\n" for name, text in spoken.items()))
    elif format == "textless":
        (folder / "u.txt").write_text("".join(f"{name}\t{text}\n" for name, text in spoken.items()))
    elif format == "km":
        (folder / "u.txt").write_text("".join(f"{text}\n" for text in spoken.values()))
        (folder / "u.tsv").write_text("/data\n" + "".join(f"wavs/{name}.wav\t16000\n" for name in spoken))
        return ["u.txt", "--format=km", "--tsv=u.tsv"]
    else:
        for number, (name, ids) in enumerate(frames.items()):
            (folder / f"units/{number}").mkdir(parents=True)
            torch.save(np.array(ids), folder / f"units/{number}/{name}.unit")
        return ["units", "--format=unit"]
    return ["u.txt", f"--format={format}"]


@pytest.mark.parametrize("format", ["fairseq", "textless", "km", "unit"])
def test_units_of_others_come_in(folder: Path, format: str) -> None:
    run(import_, "units", *write(folder, format), "--codebook=codebook.safetensors")
    assert imported(folder) == EXPECTED
    facts = read_json(folder / "data/units/units.json")
    assert facts["num_units"] == 10 and len(facts["codebook_fingerprint"]) == 16 and "durations" not in facts


def test_names_that_lost_letters_are_recognised(folder: Path) -> None:
    """fairseq strips the characters of `.wav` off `calf_wav.wav` and leaves `calf_`."""
    lost = {"calf_wav.wav".rstrip(".wav") if name == "calf_wav" else name: ids for name, ids in FRAMES.items()}
    assert "calf_" in lost
    run(import_, "units", *write(folder, "fairseq", lost), "--codebook=codebook.safetensors")
    assert imported(folder) == EXPECTED


def test_two_recordings_with_one_shortened_name_are_refused(folder: Path) -> None:
    rows = list(read_split(folder / "manifests", "train"))
    more = Row("k9", None, (Caption("id9", "wavs/calf_a.wav", 1, 16000, "0" * 64, "", ""),))
    write_splits(folder / "manifests", {"train": [*rows, more]}, rows_per_shard=9, seed=0)
    (folder / "u.txt").write_text("calf_|1 2\nanna_1|3\n")
    with pytest.raises(InputError, match="'calf_' may be 'id[19]' or 'id[19]'"):
        run(import_, "units", "u.txt", "--codebook=codebook.safetensors")


def test_deduplicated_units_take_their_durations(folder: Path) -> None:
    short = {"anna_1": [5, 2, 9], "calf_wav": [0, 7], "ben-2": [3]}
    arguments = [*write(folder, "textless", short), "--codebook=codebook.safetensors"]
    assert "each is written as one frame" in run(import_, "units", *arguments)
    assert imported(folder)["id0"] == [5, 2, 9]
    assert read_json(folder / "data/units/units.json")["durations"] == "unknown"
    runs = {"anna_1": "3 2 1", "calf_wav": "2 1", "ben-2": "4"}
    (folder / "d.txt").write_text("".join(f"{name}\t{text}\n" for name, text in runs.items()))
    run(import_, "units", *arguments, "--durations=d.txt")
    assert imported(folder) == EXPECTED


@pytest.mark.parametrize("format", ["fairseq", "textless", "km"])
def test_what_goes_out_comes_back(folder: Path, format: str) -> None:
    run(import_, "units", *write(folder, "fairseq"), "--codebook=codebook.safetensors")
    run(export, "units", "--out=out", f"--format={format}")
    if format == "km":
        assert (folder / "out/dict.km.txt").read_text().splitlines() == [f"{unit} 1" for unit in range(10)]
    suffix = {"fairseq": "txt", "textless": "tsv", "km": "km"}[format]
    for split in ("train", "val"):
        extra = [f"--tsv=out/{split}.tsv"] if format == "km" else []
        extra += [f"--durations=out/{split}.durations.tsv"] if format == "textless" else []
        arguments = [f"out/{split}.{suffix}", f"--format={format}", "--codebook=codebook.safetensors", *extra]
        run(import_, "units", *arguments, "--out=back", "--max-reject-fraction=1")
        for path in sorted((folder / "back" / split).glob("*.npz")):
            assert path.read_bytes() == (folder / "data/units" / split / path.name).read_bytes()


def test_captions_without_units_are_rejects(folder: Path) -> None:
    arguments = [*write(folder, "fairseq", {"anna_1": [1], "x": [2]}), "--codebook=codebook.safetensors"]
    with pytest.raises(InputError, match="no units in the imported file"):
        run(import_, "units", *arguments)
    output = run(import_, "units", *arguments, "--max-reject-fraction=0.9")
    assert "1 captions, 2 without units" in output and "1 utterances of u.txt belong to no caption" in output
    assert len(read_rejects(folder / "data/units/rejects.jsonl")) == 2


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_hostile_unit_file_is_refused(folder: Path, wrapping: str) -> None:
    (folder / "units").mkdir()
    WRAPPINGS[wrapping](folder / "units/anna_1.unit", Payload(folder / "ran"))
    with pytest.raises(InputError, match="Nothing was run"):
        run(import_, "units", "units", "--format=unit", "--codebook=codebook.safetensors")
    assert not (folder / "ran").exists() and not (folder / "data").exists()


def test_malformed_files_are_named(folder: Path) -> None:
    for text, format, message in (
        ("anna_1 1 2\n", "fairseq", r"u.txt:1: '<name>\|<units>' was expected"),
        ("anna_1|1 x\n", "fairseq", "u.txt:1: whole numbers"),
        ("a|1\na|2\n", "fairseq", "u.txt:2: 'a' occurs before"),
        ("1 2\n", "km", "give its .tsv"),
        ("anna_1|11\n", "fairseq", "unit 11 is not one of 10"),
    ):
        (folder / "u.txt").write_text(text)
        with pytest.raises(InputError, match=message):
            run(import_, "units", "u.txt", f"--format={format}", "--codebook=codebook.safetensors")


def test_a_feature_dump_takes_its_nearest_centroids(folder: Path) -> None:
    """fairseq's `X.npy` and `X.len`: all frames in a row, the length of each utterance, names in the .tsv."""
    centroids = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    Codebook(centroids).save(folder / "codebook.safetensors")
    write(folder, "km")
    frames = np.concatenate([centroids[ids] for ids in FRAMES.values()]) + np.float32(0.01)
    np.save(folder / "u.npy", frames)
    (folder / "u.len").write_text("".join(f"{len(ids)}\n" for ids in FRAMES.values()))
    arguments = ["u.npy", "--format=npy", "--tsv=u.tsv", "--codebook=codebook.safetensors"]
    run(import_, "units", *arguments)
    assert imported(folder) == EXPECTED
    (folder / "u.len").write_text("3\n3\n3\n")
    with pytest.raises(InputError, match="these files do not belong together"):
        run(import_, "units", *arguments)
