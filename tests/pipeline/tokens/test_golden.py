"""The frozen shard: what version 1 of the format is, byte by byte.

`golden/` was written once and is never written anew: if this fails, the format has changed, and it needs another
version number. The reader below knows docs/formats.md and the standard library, and nothing of ours.
"""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np

from pipeline.tokens import carried, index
from pipeline.tokens.contents import set_fingerprint
from pipeline.tokens.read import read_index, read_samples
from pipeline.tokens.sample import Sample, TokenCaption
from pipeline.tokens.verify import verify
from pipeline.tokens.write import write_shard

GOLDEN = Path(__file__).parent / "golden"


def golden_samples() -> list[Sample]:
    """A picture with two captions, one of them empty of text; speech alone; pixels under a name that needs PAX."""

    def spoken(id_: str, units: list[int], durations: list[int], text: str = "", speaker: str = "s") -> TokenCaption:
        return TokenCaption(id_, speaker, text, np.array(units, np.uint16), np.array(durations, np.uint16))

    image = np.array([[0, 1, 258], [999, 4, 5]], np.uint16)
    return [
        Sample("train/a-1", image, [spoken("a1", [7, 0, 300], [1, 65_535, 2], 'née "Ä" 图'), spoken("a2", [5], [3])]),
        Sample("train/b_2", None, [spoken("b", [1, 2], [4, 5], "speech alone", "")]),
        Sample("train/" + "long/" * 19 + "k", image[:1], [spoken("c", [9], [1])], b"\xff\xd8\xff\xd9"),
    ]


def read_tar(data: bytes) -> list[tuple[str, bytes]]:
    """Members of a tar of plain files, as docs/formats.md lays them out."""
    members, place, long_name = [], 0, ""
    while data[place : place + 512] != bytes(512):
        header = data[place : place + 512]
        assert sum(header[:148]) + 8 * 32 + sum(header[156:]) == int(header[148:154], 8)
        size = int(header[124:135], 8)
        content = data[place + 512 : place + 512 + size]
        place += 512 + (size + 511) // 512 * 512
        if header[156:157] == b"x":
            long_name = next(
                r.split(b"path=")[1].decode() for r in content.split(b"\n") if b" path=" in r and long_name == ""
            )
            continue
        assert header[156:157] == b"0" and header[257:265] == b"ustar\x0000"
        name, prefix = (header[a:b].rstrip(b"\0").decode() for a, b in ((0, 100), (345, 500)))
        members.append((long_name or (f"{prefix}/{name}" if prefix else name), content))
        long_name = ""
    assert data[place : place + 1024] == bytes(1024) and len(data) % 10_240 == 0
    return members


def read_npy(data: bytes) -> tuple[list[int], list[int]]:
    """(shape, values) of a uint16 array in format version 1.0."""
    assert data[:8] == b"\x93NUMPY\x01\x00"
    (length,) = struct.unpack("<H", data[8:10])
    header = data[10 : 10 + length].decode("ascii")
    assert header.startswith("{'descr': '<u2', 'fortran_order': False, 'shape': (") and header.endswith("\n")
    shape = [int(n) for n in header.split("(")[1].split(")")[0].split(",") if n.strip()]
    body = data[10 + length :]
    return shape, list(struct.unpack(f"<{len(body) // 2}H", body))


def test_the_writer_still_writes_the_golden_bytes(tmp_path):
    write_shard(tmp_path / "00000.tar", golden_samples())
    assert (tmp_path / "00000.tar").read_bytes() == (GOLDEN / "train" / "00000.tar").read_bytes()


def test_a_reader_made_from_the_specification_reads_it():
    members = read_tar((GOLDEN / "train" / "00000.tar").read_bytes())
    names = [name for name, _ in members]
    assert names[:4] == [f"train/a-1.{end}" for end in ("durations.npy", "image.npy", "json", "units.npy")]
    assert names[-1] == "train/" + "long/" * 19 + "k.units.npy" and len(names) == 4 + 3 + 5
    files = dict(members)
    assert read_npy(files["train/a-1.image.npy"]) == ([2, 3], [0, 1, 258, 999, 4, 5])
    assert read_npy(files["train/a-1.units.npy"]) == ([4], [7, 0, 300, 5])
    assert read_npy(files["train/a-1.durations.npy"]) == ([4], [1, 65_535, 2, 3])
    about = json.loads(files["train/a-1.json"])
    assert about["key"] == "train/a-1" and [c["id"] for c in about["captions"]] == ["a1", "a2"]
    assert [(c["offset"], c["num_units"], c["num_frames"]) for c in about["captions"]] == [(0, 3, 65_538), (3, 1, 3)]
    assert about["captions"][0]["text"] == 'née "Ä" 图' and "train/b_2.image.npy" not in files
    assert files["train/" + "long/" * 19 + "k.jpg"] == b"\xff\xd8\xff\xd9"


def test_the_golden_index_is_still_understood_and_named_the_same():
    found = read_index(GOLDEN, "train")
    canonical = json.dumps(
        {name: found[name] for name in ("shards", "split", "tokenizers", "version", "vocab")},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )
    assert found["fingerprint"] == hashlib.sha256(canonical.encode()).hexdigest()[:16] == "04ae6fa7b1f04723"
    contents = json.loads((GOLDEN / "contents.json").read_text())
    assert contents["fingerprint"] == set_fingerprint({"train": found["fingerprint"]})
    assert verify(GOLDEN) == [] and index.VERSION == 1
    codes, fingerprint = carried.read_image_codebook(GOLDEN / "tokenizers" / "image.safetensors")
    assert codes.shape == (1000, 1) and fingerprint == "0123456789abcdef"


def test_our_reader_gives_back_the_golden_samples():
    for found, expected in zip(read_samples(GOLDEN, "train"), golden_samples(), strict=True):
        assert (found.key, found.jpg) == (expected.key, expected.jpg)
        assert (found.image is None) == (expected.image is None)
        assert expected.image is None or np.array_equal(found.image, expected.image)
        for a, b in zip(found.captions, expected.captions, strict=True):
            assert (a.id, a.speaker, a.text) == (b.id, b.speaker, b.text)
            assert np.array_equal(a.units, b.units) and np.array_equal(a.durations, b.durations)
