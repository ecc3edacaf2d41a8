"""Parts: exact round trips, bytes that depend on the arrays alone, and refusals that name file and array."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import InputError
from pipeline.tokens import parts

FRAMES = st.lists(
    arrays.arrays(np.int64, st.integers(0, 80), elements=st.integers(0, 3) | st.integers(0, 65_535)),
    max_size=6,
)


@given(FRAMES)
def test_frames_come_back_exactly(frames):
    runs = [parts.deduplicate(row) for row in frames]
    ids = [f"u{i}" for i in range(len(frames))]
    part = parts.UnitsPart.from_utterances(ids, [r[0] for r in runs], [r[1] for r in runs])
    for id_, row in zip(ids, frames, strict=True):
        units, durations = part.utterance(part.index()[id_])
        assert np.array_equal(parts.restore(units, durations), row)
        assert not np.any(units[1:] == units[:-1])


def test_round_trip_and_bytes_without_a_clock(tmp_path, monkeypatch):
    part = parts.UnitsPart.from_utterances(["a/1", "ö"], [[1, 2], []], [[3, 1], []])
    parts.write_units_part(tmp_path / "a.npz", part)
    monkeypatch.setattr("time.time", lambda: 2e9)
    parts.write_units_part(tmp_path / "b.npz", parts.read_units_part(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    images = parts.ImagesPart(np.array(["k"]), np.full((1, 2, 3), 65_535, np.uint16))
    parts.write_images_part(tmp_path / "i.npz", images)
    back = parts.read_images_part(tmp_path / "i.npz")
    assert back.tokens.dtype == np.uint16 and np.array_equal(back.tokens, images.tokens)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz", "i.npz"]


@pytest.mark.parametrize("bad", [[65_536], [-1], [0.5]])
def test_ids_that_do_not_fit_are_refused(bad):
    with pytest.raises(InputError, match="uint16|integers"):
        parts.UnitsPart.from_utterances(["a"], [bad], [[1]])


def test_a_run_longer_than_uint16_is_refused():
    with pytest.raises(InputError, match="durations"):
        parts.deduplicate(np.zeros(65_536, np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.array([0, 1, 2], np.int64)}, "offsets"),
        ({"offsets": np.array([0, 2], np.int32)}, "'offsets' must be int64"),
        ({"units": np.array([1, 2], np.int64)}, "'units' must be uint16"),
        ({"durations": np.array([1, 0], np.uint16)}, "zero"),
        ({"ids": np.array([b"a"])}, "'ids' must be unicode"),
        ({"units": None}, "no array 'units'"),
        ({"units": np.array([{}], object)}, "cannot read 'units'"),
    ],
)
def test_inconsistent_parts_are_refused_by_file_and_array(tmp_path, change, message):
    good = {
        "ids": np.array(["a"]),
        "offsets": np.array([0, 2], np.int64),
        "units": np.array([1, 2], np.uint16),
        "durations": np.array([1, 1], np.uint16),
    }
    np.savez(tmp_path / "p.npz", **{k: v for k, v in {**good, **change}.items() if v is not None})
    with pytest.raises(InputError, match=message) as error:
        parts.read_units_part(tmp_path / "p.npz")
    assert "p.npz" in str(error.value)


def test_duplicates_torn_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="'a' more than once"):
        parts.UnitsPart.from_utterances(["a", "a"], [[1], [1]], [[1], [1]])
    with pytest.raises(InputError, match="no such file"):
        parts.read_units_part(tmp_path / "none.npz")
    parts.write_images_part(tmp_path / "i.npz", parts.ImagesPart(np.array(["k"]), np.zeros((1, 9, 9), np.uint16)))
    data = (tmp_path / "i.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="torn.npz"):
        parts.read_images_part(tmp_path / "torn.npz")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "npy.npz").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="npy.npz: not an npz"):
        parts.read_images_part(tmp_path / "npy.npz")
    with zipfile.ZipFile(tmp_path / "i.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
