"""SeiT's archives: golden bytes worked out from the format's rule, both ways, and what is no such archive."""

import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.manifest import Caption, Image, Row, read_rejects, read_rows, write_splits
from pipeline.tokens import seit
from pipeline.tokens.parts import ImagesPart, read_images_part, write_images_part
from pipeline.vision.vit_vqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from stages.tools import export, import_

# Below 255 a token is its own byte; from 255 on it is ff and what is above 255. By hand: 254 = fe, 255 = ff 00,
# 509 = ff fe, 390 = ff 87.
GOLDEN = [([[0, 254], [255, 509]], "00 fe ff 00 ff fe"), ([[1, 2], [3, 390]], "01 02 03 ff 87")]


def tokenizer(folder: Path, codes: int = 510, crop_tokens: int = 0, side: int = 2) -> ViTVQGAN:
    config = ViTVQGANConfig(
        image_size=8 * side,
        patch_size=8,
        encoder=TransformerConfig(8, 1, 1, 8),
        decoder=None,
        n_embed=codes,
        embed_dim=4,
        crop_tokens=crop_tokens,
    )
    model = ViTVQGAN(config)
    model.save(folder)
    return model


def write_archive(folder: Path, entries: Sequence[bytes], names: Sequence[str], offsets: object = None) -> list[str]:
    """The three files, written without the code that is tested; gives the arguments that name them."""
    (folder / "t.data.bin.gz").write_bytes(gzip.compress(b"".join(entries)))
    buffer = io.BytesIO()
    np.save(buffer, np.cumsum([0, *map(len, entries)]) if offsets is None else offsets)
    (folder / "t.index.npy.gz").write_bytes(gzip.compress(buffer.getvalue()))
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in names))
    return ["t.data.bin.gz", "--names=names.txt", "--vqgan=vqgan"]


def run(tool, *arguments: str) -> str:
    return CliRunner().invoke(tool.command, ["images", *arguments], catch_exceptions=False).output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures in `train`, one in `val`, and a tokenizer of 510 codes on a grid of 2 x 2."""
    monkeypatch.chdir(tmp_path)
    caption = {name: (Caption(f"c{name}", "a.wav", 1, 1, "0" * 64, "", ""),) for name in "abc"}
    rows = [Row(name, Image(f"pictures/{name}.jpg", 16, 16, "0" * 64), caption[name]) for name in "abc"]
    write_splits(tmp_path / "manifests", {"train": rows[:2], "val": rows[2:]}, rows_per_shard=1, seed=0)
    tokenizer(tmp_path / "vqgan")
    return tmp_path


def imported(folder: Path) -> dict[str, list[list[int]]]:
    parts = [read_images_part(path) for path in sorted((folder / "data/images").rglob("*.npz"))]
    return {str(key): part.tokens[n].tolist() for part in parts for n, key in enumerate(part.keys)}


@pytest.mark.parametrize(("tokens", "expected"), GOLDEN)
def test_golden_bytes(tokens: list[list[int]], expected: str) -> None:
    coded = bytes.fromhex(expected)
    assert seit.encode(np.array(tokens, np.uint16)) == coded
    found = seit.decode(np.frombuffer(coded, np.uint8), "here")
    np.testing.assert_array_equal(found, np.array(tokens).reshape(-1))


def test_every_id_comes_back_and_no_other_can_be_written() -> None:
    ids = np.arange(510)
    np.testing.assert_array_equal(seit.decode(np.frombuffer(seit.encode(ids), np.uint8), "here"), ids)
    assert seit.encode(np.zeros(0, np.uint16)) == b"" and not seit.decode(np.zeros(0, np.uint8), "here").size
    for wrong in (510, -1):
        with pytest.raises(InputError, match=f"token {wrong}: SeiT's archives hold ids from 0 to 509"):
            seit.encode(np.array([3, wrong]))


@pytest.mark.parametrize("naming", ["pictures/{}.jpg", "{}.jpg", "{}"])
def test_an_archive_comes_in_by_the_names_of_its_pictures(folder: Path, naming: str) -> None:
    entries = [bytes.fromhex(coded) for _, coded in GOLDEN]
    names = [naming.format(name) for name in ("c", "a", "b")]
    output = run(import_, *write_archive(folder, [entries[0], entries[1], b"\x07\x07\x07\x07"], names))
    assert "3 pictures, 0 without tokens" in output
    assert imported(folder) == {"c": GOLDEN[0][0], "a": GOLDEN[1][0], "b": [[7, 7], [7, 7]]}
    about = read_json(folder / "data/images/tokenizer.json")
    assert about["vocab"] == 510 and about["grid"] == [2, 2] and about["kind"] == "vit_vqgan"
    assert not list(folder.rglob("seit-*.bin"))


def test_pictures_without_tokens_are_rejects(folder: Path) -> None:
    arguments = write_archive(folder, [b"", b"\x01\x02\x03\x04", b"\x00" * 4], ["a.jpg", "b.jpg", "x.jpg"])
    with pytest.raises(InputError, match="imported archive"):
        run(import_, *arguments)
    output = run(import_, *arguments, "--max-reject-fraction=0.9")
    assert "1 pictures, 2 without tokens" in output and "1 entries of t.data.bin.gz belong to no picture" in output
    reasons = {reject.key: reject.reason for reject in read_rejects(folder / "data/images/rejects.jsonl")}
    assert reasons == {"a": "empty in the imported archive", "c": "not in the imported archive"}


def test_a_tokenizer_that_keeps_the_centre_takes_it_of_whole_grids(folder: Path) -> None:
    """SeiT's own: entries of 32 x 32, models that see the inner 28 x 28; here 4 x 4 and 2 x 2."""
    tokenizer(folder / "vqgan", crop_tokens=2, side=4)
    entries = [bytes(range(16)), bytes(range(100, 116)), bytes([9, 8, 7, 6])]
    run(import_, *write_archive(folder, entries, ["a", "b", "c"]))
    assert imported(folder) == {"a": [[5, 6], [9, 10]], "b": [[105, 106], [109, 110]], "c": [[9, 8], [7, 6]]}


def test_what_goes_out_comes_back(folder: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = {}
    for split, keys in (("train", "ab"), ("val", "c")):
        for path in sorted((folder / "manifests" / split).glob("*.jsonl")):
            key = next(key for key in keys if f'"key": "{key}"' in path.read_text())
            tokens[key] = rng.integers(510, size=(1, 2, 2)).astype(np.uint16)
            part = ImagesPart(np.array([key]), tokens[key])
            write_images_part(folder / f"data/images/{split}/{path.stem}.npz", part)
    lines = run(export, "--out=out").splitlines()
    assert len(lines) == 6 and lines[2] == "out/train.names.txt"
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    run(export, "--out=out")
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before
    run(import_, "out/train.data.bin.gz", "--names=out/train.names.txt", "--vqgan=vqgan", "--max-reject-fraction=0.5")
    assert imported(folder) == {key: tokens[key][0].tolist() for key in "ab"}


def test_a_picture_of_several_rows_is_written_once_and_comes_back_for_each(folder: Path) -> None:
    tokens = {key: np.full((2, 2), 300 + ord(key[0]), np.uint16) for key in ("a1", "b", "a2", "a3")}
    caption = {key: (Caption(f"c{key}", "a.wav", 1, 1, "0" * 64, "", ""),) for key in tokens}
    rows = [Row(key, Image(f"{key[0]}.jpg", 16, 16, "0" * 64), caption[key]) for key in tokens]
    write_splits(folder / "manifests", {"train": rows}, rows_per_shard=2, seed=0)
    for path in sorted((folder / "manifests/train").glob("*.jsonl")):
        keys = [row.key for row in read_rows(path)]
        part = ImagesPart(np.array(keys), np.stack([tokens[key] for key in keys]))
        write_images_part(folder / f"data/images/train/{path.stem}.npz", part)
    names = seit.export_images(folder / "manifests", folder / "data/images", "train", folder / "out")[2]
    assert sorted(names.read_text().split()) == ["a.jpg", "b.jpg"]
    run(import_, "out/train.data.bin.gz", "--names=out/train.names.txt", "--vqgan=vqgan", "--max-reject-fraction=0.5")
    assert {key: found for key, found in imported(folder).items() if key in tokens} == {
        key: value.tolist() for key, value in tokens.items()
    }


def test_a_codebook_that_the_coding_cannot_hold_is_not_exported(folder: Path) -> None:
    for path in (folder / "manifests").rglob("*.jsonl"):
        key = next(key for key in "abc" if f'"key": "{key}"' in path.read_text())
        part = ImagesPart(np.array([key]), np.full((1, 2, 2), 510, np.uint16))
        write_images_part(folder / "data/images" / path.parent.name / f"{path.stem}.npz", part)
    with pytest.raises(InputError, match=r"data/images: pictures/\w.jpg: token 510: .* 510 codes at most"):
        run(export, "--out=out")
    assert not (folder / "out/train.data.bin.gz").exists()


FOUR = [b"\x01\x02\x03\x04", b"\x00" * 4, b"\x05" * 4]


@pytest.mark.parametrize(
    ("entries", "offsets", "message"),
    [
        ([FOUR[0], b"\x01\x02\x03\xff", FOUR[2]], None, r"t.data.bin.gz: entry 1 \(b.jpg\): the byte 255"),
        ([FOUR[0], b"\xff\xff\x01\x02\x03", FOUR[2]], None, r"entry 1 \(b.jpg\): the byte 255"),
        ([FOUR[0], b"\x01\x02\x03", FOUR[2]], None, "entry 1 .*3 tokens, but the tokenizer makes 2 x 2; give --vqgan"),
        (FOUR, [0, 4, 8, 16], "unpacks to 12, not the 16 bytes that t.index.npy.gz says"),
        (FOUR, [0, 4, 8, 9], "unpacks to more than the 9 bytes"),
        (FOUR, [0, 8, 4, 12], "t.index.npy.gz: offsets have to rise from 0"),
        (FOUR, [1, 4, 8, 12], "offsets have to rise from 0"),
        (FOUR, [0, 4, 8, 12, 16], "t.index.npy.gz: 5 offsets, but names.txt names 3 pictures: one more"),
        (FOUR, [0.0, 4.0, 8.0, 12.0], "holds float64 .*one row of whole numbers"),
        (FOUR, [[0, 4], [8, 12]], "one row of whole numbers"),
    ],
)
def test_data_and_index_that_do_not_belong_together(folder: Path, entries, offsets, message: str) -> None:
    arguments = write_archive(folder, entries, ["a.jpg", "b.jpg", "c.jpg"], offsets)
    with pytest.raises(InputError, match=message):
        run(import_, *arguments)
    assert not (folder / "data").exists() and not list(folder.rglob("seit-*"))


def test_an_id_beyond_the_codebook(folder: Path) -> None:
    tokenizer(folder / "vqgan", codes=391)
    arguments = write_archive(folder, [bytes.fromhex("01 02 03 ff 88"), *FOUR[1:]], ["a", "b", "c"])
    with pytest.raises(InputError, match=r"entry 0 \(a\): token 391 is not one of the codebook's 391; give --vqgan"):
        run(import_, *arguments)


def test_files_that_are_torn_missing_or_of_another_kind(folder: Path) -> None:
    arguments = write_archive(folder, FOUR, ["a", "b", "c"])
    whole = {name: (folder / name).read_bytes() for name in ("t.data.bin.gz", "t.index.npy.gz", "names.txt")}
    long = gzip.compress(np.random.default_rng(0).bytes(5_000_000))
    for name, content, message in (
        ("t.data.bin.gz", whole["t.data.bin.gz"][:-4], "t.data.bin.gz: not readable as gzip, or cut short"),
        ("t.data.bin.gz", b"plain", "t.data.bin.gz: not readable as gzip"),
        ("t.data.bin.gz", long, "t.data.bin.gz: unpacks to more than the 12 bytes"),
        ("t.index.npy.gz", whole["t.index.npy.gz"][:-9], "t.index.npy.gz: not readable as gzip, or cut short"),
        ("t.index.npy.gz", gzip.compress(b"no array"), "t.index.npy.gz: not an npy array in gzip"),
        ("names.txt", b"a\n\nc\n", "names.txt:2: an empty line"),
        ("names.txt", b"a\nb\na\n", "names.txt:3: 'a' stands on line 1 too"),
        ("names.txt", b"\xff\n", "names.txt: not text in UTF-8"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            run(import_, *arguments)
        (folder / name).write_bytes(whole[name])
    for name in whole:
        (folder / name).rename(folder / "away")
        with pytest.raises(InputError, match=f"{re.escape(name)}: no such file"):
            run(import_, *arguments)
        (folder / "away").rename(folder / name)
    with pytest.raises(InputError, match="names.txt: an archive of SeiT's is called <name>.data.bin.gz"):
        run(import_, "names.txt", *arguments[1:])


def test_a_pickle_in_the_index_is_refused_unread(folder: Path) -> None:
    ran = folder / "ran"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (ran,))

    arguments = write_archive(folder, FOUR, ["a", "b", "c"], np.array([Hostile()] * 4, dtype=object))
    with pytest.raises(InputError, match="t.index.npy.gz: holds object .*nothing was run"):
        run(import_, *arguments)
    assert not ran.exists()


def test_a_header_that_lies_about_its_size_allocates_nothing(folder: Path) -> None:
    arguments = write_archive(folder, FOUR, ["a", "b", "c"])
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<i8", "fortran_order": False, "shape": (2**50,)})
    (folder / "t.index.npy.gz").write_bytes(gzip.compress(buffer.getvalue()))
    with pytest.raises(InputError, match=f"{2**50} offsets, but names.txt names 3"):
        run(import_, *arguments)


def test_one_name_for_two_pictures_is_refused(folder: Path) -> None:
    caption = tuple(Caption(name, "a.wav", 1, 1, "0" * 64, "", "") for name in "xy")
    rows = [
        Row(name, Image(f"{name}/same.jpg", 16, 16, "0" * 64), (caption[n],)) for n, name in enumerate(("one", "two"))
    ]
    write_splits(folder / "manifests", {"train": rows}, rows_per_shard=9, seed=0)
    arguments = write_archive(folder, [FOUR[0]], ["same.jpg"])
    with pytest.raises(InputError, match="'same.jpg' may be (one|two)/same.jpg or .*list paths with their folders"):
        run(import_, *arguments)
