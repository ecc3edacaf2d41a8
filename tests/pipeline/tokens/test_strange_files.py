"""Strangers' files: tars of other tools are read, and whatever is broken is an InputError, never another exception."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.tokens.read import read_members, read_shard
from pipeline.tokens.sample import from_members, npy_bytes, to_members
from pipeline.tokens.tar import walk
from pipeline.tokens.verify import Fault
from tests.pipeline.tokens.making import make_samples

SAMPLES = make_samples("x", 3)


def pack(format: int, prefix: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for sample in SAMPLES:
            for name, data in to_members(sample).items():
                member = tarfile.TarInfo(f"{prefix}{sample.key}.{name}")
                member.size, member.mtime, member.uname = len(data), 1e9, "somebody"
                tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "a/" * 30, "ä/", "deep/" * 60])
def test_tars_of_other_tools_are_read_as_tarfile_reads_them(tmp_path, format, prefix):
    if format == tarfile.USTAR_FORMAT and prefix == "deep/" * 60:
        pytest.skip("too long for USTAR")
    path = tmp_path / "a.tar"
    path.write_bytes(pack(format, prefix))
    with tarfile.open(path) as tar:
        expected = [(member.name, tar.extractfile(member).read()) for member in tar]
    assert list(walk(path, 2**20)) == expected
    assert [key for key, _ in read_members(path)] == [f"{prefix}{sample.key}" for sample in SAMPLES]


def outcome(path: Path) -> str:
    try:
        return f"{len(list(read_shard(path)))} samples"
    except InputError as error:
        assert str(path) in str(error)
        return "refused"


@settings(max_examples=300, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), zipped=st.booleans()
)
def test_any_broken_byte_is_read_or_refused(tmp_path_factory, places, zipped):
    data = pack(tarfile.PAX_FORMAT)
    data = bytearray(gzip.compress(data, mtime=0) if zipped else data)
    for place, value in places:
        data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "broken.tar"
    path.write_bytes(data)
    outcome(path)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=3000), start=st.integers(0, 2000))
def test_noise_is_refused(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "noise.tar"
    path.write_bytes(pack(tarfile.PAX_FORMAT)[:start] + data)
    outcome(path)


def header(size: bytes, name: bytes = b"k.json", kind: bytes = b"0") -> bytes:
    """A header whose check sum is right, whatever it says."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (header(b"-0000000010"), "not octal"),
        (header(b"77777777777"), "too large"),
        (header(b"\xff" * 12), "too large"),
        (header(b"00000000000", kind=b"2"), "not a plain file"),
        (header(b"00000000000", kind=b"x") + header(b"00000000000", kind=b"5"), "not a plain file"),
        (header(b"77777777777", kind=b"L"), "too large"),
        (header(b"00000000010", kind=b"x") + b"99 path=".ljust(512, b"\0"), "PAX header is malformed"),
        (header(b"00000000000", name=b"\xff\xfe"), "not UTF-8"),
        (b"\x1f\x8b" + bytes(600), "gzip"),
    ],
)
def test_headers_that_mean_harm_are_refused(tmp_path, block, words):
    path = tmp_path / "a.tar"
    path.write_bytes(block + bytes(2048))
    with pytest.raises(InputError, match=words):
        list(walk(path, 2**26))


def test_a_compression_bomb_is_bounded_by_its_members(tmp_path):
    path = tmp_path / "a.tar.gz"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo("k.json")
        member.size = 2**27
        tar.addfile(member, io.BytesIO(bytes(2**27)))
    path.write_bytes(gzip.compress(stream.getvalue()))
    with pytest.raises(InputError, match="too large"):
        list(read_shard(path))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"key": ' + "1" * 5000 + "}",
        '{"captions": [{"id": "\\ud800"}], "key": "k"}',
        "\ud800",
        "null",
        "[]",
    ],
)
def test_json_that_means_harm_is_refused(text):
    arrays = npy_bytes(np.zeros(0, np.uint16))
    data = text.encode("utf-8", "surrogatepass")
    with pytest.raises(InputError, match="k.json"):
        from_members("k", {"json": data, "units.npy": arrays, "durations.npy": arrays})


def test_surrogate_pairs_of_other_writers_are_text():
    members = to_members(SAMPLES[0])
    about = json.loads(members["json"])
    about["captions"][0]["text"] = "😀"
    escaped = json.dumps(about).encode()
    assert b"\\ud83d" in escaped
    assert from_members(SAMPLES[0].key, {**members, "json": escaped}).captions[0].text == "😀"


def test_a_strangers_name_cannot_steer_the_terminal():
    assert str(Fault("a.tar", "\x1b[2Jk\ud800", "é")) == "a.tar: \\x1b[2Jk\\xd800: é"
