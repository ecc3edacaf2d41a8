"""Token shards: round trip, determinism, everyone's loaders, and faults named by shard and key."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.files import read_json, sha256_file, write_json
from pipeline.manifest import Reject
from pipeline.runner import ShardResult
from pipeline.tokens import index, parts, read, sample, verify, write
from pipeline.tokens.card import About, dataset_card
from pipeline.tokens.read import Sample, TokenCaption


def make_samples(split: str, num_samples: int = 3) -> list[Sample]:
    rng = np.random.default_rng(3)
    samples = []
    for n in range(num_samples):
        key = f"{split}/k-{n}"
        runs = [parts.deduplicate(rng.integers(0, 9, 30)) for _ in range(n + 1)]
        captions = [TokenCaption(f"{key}-{i}", "s", "naïve", *run) for i, run in enumerate(runs)]
        samples.append(Sample(key, rng.integers(0, 99, (2, 3)).astype(np.uint16), captions))
    return samples


def write_split(folder: Path, split: str) -> None:
    """One shard of three samples and its index."""
    samples = make_samples(split)
    path = folder / split / "00000.tar"
    write.write_shard(path, samples)
    counts = {
        "samples": 3,
        "images": 3,
        "captions": 6,
        "units": sum(len(c.units) for s in samples for c in s.captions),
        "frames": 180,
        "milliseconds": 3600,
    }
    facts = {"sha256": sha256_file(path), "filesize": path.stat().st_size}
    tokenizers = index.Tokenizers(
        {"fingerprint": "t" * 16, "vocab": 99, "grid": [2, 3]}, {"fingerprint": "c" * 16, "vocab": 9}
    )
    result = ShardResult(counts, [Reject("x", "", "shards", "no caption left")], facts)
    index.write_indexes(folder, {f"{split}/00000": result}, tokenizers)


@pytest.fixture
def shards(tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path, split)
    return tmp_path


def assert_equal(found: Sample, expected: Sample) -> None:
    assert found.key == expected.key and found.jpg == expected.jpg
    assert found.image.dtype == np.uint16 and np.array_equal(found.image, expected.image)
    assert len(found.captions) == len(expected.captions)
    for a, b in zip(found.captions, expected.captions, strict=True):
        assert (a.id, a.speaker, a.text) == (b.id, b.speaker, b.text)
        assert np.array_equal(a.units, b.units) and np.array_equal(a.durations, b.durations)


def test_round_trip(shards):
    found = list(read.read_samples(shards, "train"))
    for a, b in zip(found, make_samples("train"), strict=True):
        assert_equal(a, b)


def test_round_trip_with_pixels_without_image_and_long_keys(tmp_path):
    caption = TokenCaption("c", "", "", np.array([1], np.uint16), np.array([2], np.uint16))
    samples = [
        Sample("speech-only", None, [caption]),
        Sample("deep/" * 30 + "k", np.zeros((1, 1), np.uint16), [caption], b"\xff\xd8jpeg"),
    ]
    write.write_shard(tmp_path / "a.tar", samples)
    first, second = read.read_shard(tmp_path / "a.tar")
    assert first.image is None and first.captions[0].durations.tolist() == [2]
    assert_equal(second, samples[1])


def test_bytes_depend_on_the_samples_alone(tmp_path, monkeypatch):
    write.write_shard(tmp_path / "a.tar", make_samples("x"))
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("os.getuid", lambda: 1234)
    write.write_shard(tmp_path / "b.tar", make_samples("x"))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_stock_webdataset_reads_it_with_default_decoders(shards):
    webdataset = pytest.importorskip("webdataset")
    url = str(shards / "train" / "00000.tar")
    for found, expected in zip(
        webdataset.WebDataset(url, shardshuffle=False).decode(), make_samples("train"), strict=True
    ):
        assert found["__key__"] == expected.key
        assert found["image.npy"].dtype == np.uint16 and np.array_equal(found["image.npy"], expected.image)
        for record, caption in zip(found["json"]["captions"], expected.captions, strict=True):
            here = slice(record["offset"], record["offset"] + record["num_units"])
            assert np.array_equal(found["units.npy"][here], caption.units)
            assert np.array_equal(found["durations.npy"][here], caption.durations)


def test_wids_reads_the_index(shards, tmp_path):
    wids = pytest.importorskip("wids")
    (tmp_path / "cache").mkdir()
    url = str(shards / "train" / "index.json")
    dataset = wids.ShardListDataset(url, cache_dir=str(tmp_path / "cache"), keep=True, transformations=[])
    assert len(dataset) == 3
    found = np.load(io.BytesIO(dataset[2][".image.npy"].read()), allow_pickle=False)
    assert dataset[2]["__key__"] == "train/k-2" and np.array_equal(found, make_samples("train")[2].image)


def test_plain_tarfile_and_numpy_read_it(shards):
    with tarfile.open(shards / "train" / "00000.tar") as tar:
        array = np.load(io.BytesIO(tar.extractfile("train/k-1.units.npy").read()), allow_pickle=False)
    assert np.array_equal(array, np.concatenate([c.units for c in make_samples("train")[1].captions]))


def test_the_writer_refuses_what_does_not_fit(tmp_path):
    good = make_samples("x")[0]
    big = np.array([65_536])
    caption = TokenCaption("c", "", "", big, np.array([1]))
    for bad, message in (
        (Sample("a.b", good.image, good.captions), "cuts keys at dots"),
        (Sample("a", big[None], good.captions), "65536 do not fit uint16"),
        (Sample("a", good.image, [caption]), "65536 do not fit uint16"),
    ):
        with pytest.raises(InputError, match=message):
            write.write_shard(tmp_path / "a.tar", [bad])
    with pytest.raises(InputError, match="'x/k-0' occurs twice"):
        write.write_shard(tmp_path / "a.tar", [good, good])
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, change) -> None:
    """Write a tar anew with `change(name, data) -> data` on every member, repairing nothing else."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            data = change(name, data)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def faults(shards: Path, **options) -> str:
    return "\n".join(map(str, verify.verify(shards, **options)))


def test_verify_is_content_with_what_was_written(shards):
    assert faults(shards, codebook="c" * 16) == ""


def test_verify_names_a_flipped_byte(shards):
    path = shards / "val" / "00000.tar"
    data = bytearray(path.read_bytes())
    where = data.find(b"val/k-1.units.npy") + 512 + 128
    data[where] ^= 0x40
    path.write_bytes(data)
    found = faults(shards)
    assert "val/00000.tar: its SHA-256" in found and "val/00000.tar: val/k-1: caption" in found
    assert "train/" not in found


def test_verify_names_missing_truncated_and_unlisted_shards(shards):
    path = shards / "val" / "00000.tar"
    data = path.read_bytes()
    path.rename(shards / "val" / "00009.tar")
    found = faults(shards)
    assert "val/00000.tar: listed in the index" in found and "val/00009.tar: not listed" in found
    (shards / "val" / "00009.tar").unlink()
    path.write_bytes(data[:3000])
    found = faults(shards)
    assert "val/00000.tar: 3,000 bytes" in found and "samples, the index says 3" in found
    with pytest.raises(InputError, match=r"00000\.tar"):
        list(read.read_samples(shards, "val"))


def test_verify_names_ids_out_of_range_offsets_duplicates_and_codebooks(shards):
    path = shards / "val" / "00000.tar"
    rewrite(
        path,
        lambda n, d: sample.npy_bytes(np.full((2, 3), 99, np.uint16)) if n.endswith("0.image.npy") else d,
    )
    assert "val/00000.tar: val/k-0: image token 99 is out of range (vocabulary of 99)" in faults(shards)
    rewrite(path, lambda n, d: d.replace(b'"offset":0', b'"offset":1') if n == "val/k-1.json" else d)
    assert "val/00000.tar: val/k-1: caption val/k-1-0: offset 1" in faults(shards)
    (shards / "val" / "00000.tar").write_bytes((shards / "train" / "00000.tar").read_bytes())
    assert "val/00000.tar: train/k-0: the key 'train/k-0' is also in train/00000.tar" in faults(shards)
    assert f"units of codebook {'c' * 16}, expected codebook {'d' * 16}" in faults(shards, codebook="d" * 16)


def test_verify_names_an_index_that_was_edited(shards):
    path = shards / "val" / "index.json"
    write_json(
        path,
        {**read_json(path), "totals": {**read_json(path)["totals"], "captions": 7}, "vocab": {"units": 9}},
    )
    found = faults(shards)
    assert "totals say 7 captions, there are 6" in found and "fingerprint does not fit" in found
    write_json(path, {**read_json(path), "version": 99})
    with pytest.raises(InputError, match="version 99"):
        read.read_index(shards, "val")
    with pytest.raises(InputError, match="splits with an index: train, val"):
        read.read_index(shards, "nosuch")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"\x80\x04K\x01.",
        sample.npy_bytes(np.zeros((2, 2), np.int64)),
        sample.npy_bytes(np.zeros((2, 2), np.uint16))[:-1],
        sample.npy_bytes(np.zeros((2, 2), np.uint16)).replace(b"(2, 2)", b"(9,9e)"),
        sample.npy_bytes(np.zeros((2, 2), np.uint16)).replace(b"(2, 2), ", b"(99999999999999, 2)"),
        sample.npy_bytes(np.zeros((2, 2), np.uint16)).replace(b"'<u2'", b"'|O' "),
    ],
)
def test_strange_arrays_are_refused_without_unpickling(data):
    with pytest.raises(InputError, match="k.image.npy"):
        sample.npy_array(data, "k.image.npy", num_dims=2)


def test_links_and_giants_are_refused(tmp_path, monkeypatch):
    write.write_shard(tmp_path / "a.tar", make_samples("x"))
    monkeypatch.setattr(read, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(InputError, match="too large"):
        list(read.read_shard(tmp_path / "a.tar"))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        link = tarfile.TarInfo("k.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(InputError, match="not a plain file"):
        list(read.read_shard(tmp_path / "b.tar"))


def test_the_card_is_yaml_and_says_the_counts(shards):
    yaml = pytest.importorskip("yaml")
    indexes = {split: read.read_index(shards, split) for split in read.split_names(shards)}
    text = dataset_card(About('A "title"', "cc-by-4.0", citation="Us, 2026"), indexes)
    _, front, body = text.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["license"] == "cc-by-4.0" and front["pretty_name"] == 'A "title"'
    assert [f["split"] for f in front["configs"][0]["data_files"]] == ["train", "val"]
    assert "| train | 3 | 3 | 6 |" in body and "t" * 16 in body and "Us, 2026" in body
