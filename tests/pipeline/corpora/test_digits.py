"""The digits corpus: same bytes from the same seed, and nothing shared between learning and testing."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline import manifest
from pipeline.corpora.build import build
from pipeline.corpora.check import Limits
from pipeline.corpora.digits import WORDS, DigitsSize, read_recordings, write_digits
from pipeline.corpora.unchecked import Options
from pipeline.errors import InputError
from pipeline.media import audio_info, write_wav

REAL = Path(__file__).parents[3] / "../shared/real/fsdd-5-speakers.tar"
SIZE = DigitsSize(6, 2, 3, 3, held_out_speaker="cara")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise for voices: three speakers, ten digits, recordings 0 to 9."""
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    for who, name in enumerate(("anna", "ben", "cara")):
        for digit in range(10):
            for number in range(10):
                rng = np.random.default_rng([who, digit, number])
                wave = rng.normal(0, 0.1, 800 + 10 * number).astype(np.float32)
                write_wav(folder / f"{digit}_{name}_{number}.wav", wave, 8000)
    return folder.parent


def test_same_bytes_from_folder_and_tar(recordings: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "fsdd.tar", "w") as archive:
        archive.add(recordings / "recordings", "recordings")
    note = write_digits(recordings, tmp_path / "a", SIZE)
    assert write_digits(tmp_path / "fsdd.tar", tmp_path / "b", SIZE) == note
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 14 + 20 + 2
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_table_reader_takes_it_and_speakers_are_kept_apart(recordings: Path, tmp_path: Path) -> None:
    write_digits(recordings, tmp_path / "a", SIZE)
    built = build(tmp_path / "a", "table", Options(), Limits())
    assert {split: len(rows) for split, rows in built.splits.items()} == {
        "test": 3,
        "test_speaker": 3,
        "train": 6,
        "val": 2,
    }
    speakers = {
        split: {caption.speaker for row in rows for caption in row.captions} for split, rows in built.splits.items()
    }
    assert speakers["test_speaker"] == {"cara"} and "cara" not in speakers["train"] | speakers["test"]
    assert not manifest.find_leaks(built.splits)
    words = {word for row in built.splits["train"] for c in row.captions for word in c.text.split()}
    assert words <= set(WORDS)
    assert audio_info(tmp_path / "a" / built.splits["train"][0].captions[0].audio)[1] == 8000


def test_official_test_recordings_are_in_test_only(recordings: Path) -> None:
    divided, _ = read_recordings(recordings, "cara")
    lengths = {
        split: {len(w) for digits in speakers.values() for waves in digits for w in waves}
        for split, speakers in divided.items()
    }
    assert lengths["test"] == {800 + 10 * n for n in range(5)}
    assert lengths["val"] == {850, 860, 870} and lengths["train"] == {880, 890}


def test_what_is_missing_is_said(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recordings of 'dora' and others are needed; there is anna, ben, cara"):
        read_recordings(recordings, "dora")
    with pytest.raises(InputError, match="no spoken digits found; looked for recordings/"):
        read_recordings(tmp_path, "cara")
    (tmp_path / "x.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match="cannot be read as a tar"):
        read_recordings(tmp_path, "cara")


def test_a_small_cut_of_the_real_recordings(tmp_path: Path) -> None:
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not there")
    note = write_digits(REAL, tmp_path / "d", DigitsSize(8, 2, 4, 4))
    assert note["speakers"]["test_speaker"] == ["george"] and len(note["speakers"]["train"]) == 4
    built = build(tmp_path / "d", "table", Options(), Limits())
    assert (built.num_rows, built.num_captions, built.rejects) == (18, 26, [])
    assert all(0.3 < caption.seconds < 8 for rows in built.splits.values() for row in rows for caption in row.captions)
