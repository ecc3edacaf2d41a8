"""Whole sets: every fault named, statistics against what was counted by hand, card, diff, and compressed shards."""

import dataclasses
import io
import json
import math
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.errors import InputError
from pipeline.files import read_json, sha256_file, write_json
from pipeline.tokens import carried, index
from pipeline.tokens.card import dataset_card, read_about
from pipeline.tokens.contents import write_contents
from pipeline.tokens.diff import diff
from pipeline.tokens.info import sparkline
from pipeline.tokens.read import read_index, read_members, read_samples
from pipeline.tokens.sample import Sample, npy_bytes
from pipeline.tokens.statistics import set_statistics, usage
from pipeline.tokens.verify import verify
from pipeline.tokens.write import write_shard
from stages.tools.tokens import command
from tests.pipeline.tokens.making import ABOUT, IMAGE_FINGERPRINT, change_shard, make_codebook, make_samples, write_set

SIZES = {"train": [4, 3], "val": [2]}


@pytest.fixture
def shards(tmp_path) -> Path:
    return write_set(tmp_path / "set", SIZES)


def faults(shards: Path, **options) -> str:
    return "\n".join(map(str, verify(shards, **options)))


def reindex(shards: Path, split: str) -> None:
    """Make the index agree with the tars again, as somebody would who hides a change."""
    path = shards / split / "index.json"
    found = read_json(path)
    for shard in found["shards"]:
        tar = shards / split / shard["url"]
        shard.update(sha256=sha256_file(tar), filesize=tar.stat().st_size)
    found["shardlist"] = index.wids_list(found["shards"])
    found["fingerprint"] = index.index_fingerprint(found)
    write_json(path, found)
    write_contents(shards)


def test_a_fresh_set_is_intact(shards):
    fingerprint = read_json(shards / "contents.json")["fingerprint"]
    known = {"codebook": make_codebook().fingerprint, "image_tokenizer": IMAGE_FINGERPRINT, "fingerprint": fingerprint}
    assert faults(shards, **known) == ""


@pytest.mark.parametrize("place", range(0, 20480, 1531))
def test_any_flipped_byte_is_named_with_its_shard(shards, place):
    path = shards / "train" / "00001.tar"
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 0x10
    path.write_bytes(data)
    assert "train/00001.tar: its SHA-256 is not the one in the index" in faults(shards)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("part", [0, 0.03, 0.5, 0.8])
def test_a_truncated_shard_is_named(tmp_path, suffix, part):
    shards = write_set(tmp_path / "set", SIZES, suffix)
    path = shards / "train" / f"00000{suffix}"
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    found = faults(shards)
    assert f"train/00000{suffix}: " in found and "bytes, the index says" in found
    assert "not readable as" in found or "cut short" in found
    with pytest.raises(InputError, match=f"00000{suffix}"):
        list(read_samples(shards, "train"))


def test_a_missing_shard_is_named(shards):
    (shards / "train" / "00001.tar").unlink()
    assert "train/00001.tar: listed in the index, but there is no such file" in faults(shards)


def test_a_swapped_codebook_is_named_by_both_fingerprints(shards, tmp_path):
    other = make_codebook(seed=9)
    own = make_codebook().fingerprint
    other.save(tmp_path / "other.safetensors")
    said = CliRunner().invoke(command, ["verify", str(shards), "--codebook", str(tmp_path / "other.safetensors")])
    assert said.exit_code == 1
    for split in SIZES:
        assert f"{split}/index.json: units of codebook {own}, expected codebook {other.fingerprint}" in said.stdout
    other.save(shards / carried.FOLDER / carried.UNITS_NAME)  # the set's own copy
    found = faults(shards)
    assert "tokenizers/units.safetensors: its SHA-256 is not the one in contents.json" in found
    assert f"is codebook {other.fingerprint}, but the tokens are of codebook {own}" in found


def test_a_swapped_image_tokenizer_is_named_by_both_fingerprints(shards):
    path = shards / carried.FOLDER / carried.IMAGE_NAME
    path.write_bytes(path.read_bytes().replace(IMAGE_FINGERPRINT.encode(), b"2" * 16))
    assert f"tokenizers/image.safetensors: is codebook {'2' * 16}, but the tokens are of codebook" in faults(shards)
    found = faults(shards, image_tokenizer="3" * 16)
    assert f"image tokens of tokenizer {IMAGE_FINGERPRINT}, expected tokenizer {'3' * 16}" in found
    with pytest.raises(InputError, match=f"{'2' * 16}.*{IMAGE_FINGERPRINT}"):
        carried.find_image_codebook(shards, read_index(shards, "train")["tokenizers"]["image"])


def test_a_duplicated_key_and_caption_id_are_named_with_both_shards(shards):
    samples = make_samples("train", 4)
    write_shard(shards / "train" / "00001.tar", [*make_samples("train", 2, 4), samples[1]])
    found = faults(shards)
    assert "train/00001.tar: train/k-1: the key 'train/k-1' is also in train/00000.tar" in found
    assert "train/00001.tar: train/k-1: the caption id 'train/k-1-0' is also in train/00000.tar" in found


def test_a_key_that_stands_twice_in_one_tar_is_named(shards):
    path = shards / "val" / "00000.tar"
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in [*members, *members[:4]]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert "val/00000.tar: val/k-0: the key 'val/k-0' is also in val/00000.tar" in faults(shards)


def test_ids_out_of_range_are_named_even_when_the_hashes_were_made_anew(shards):
    def spoil(sample: Sample) -> Sample:
        if sample.key != "train/k-2":
            return sample
        spoken = sample.captions[1]
        worse = dataclasses.replace(spoken, units=np.where(np.arange(len(spoken.units)) == 3, 12, spoken.units))
        image = sample.image.copy()
        image[0, 0] = 40
        return dataclasses.replace(sample, image=image, captions=[sample.captions[0], worse])

    change_shard(shards / "train" / "00000.tar", spoil)
    reindex(shards, "train")
    found = faults(shards)
    assert "train/00000.tar: train/k-2: image token 40 is out of range (vocabulary of 40)" in found
    assert "train/00000.tar: train/k-2: caption train/k-2-1: unit 12 is out of range (vocabulary of 12)" in found
    assert "SHA-256" not in found
    with pytest.raises(InputError, match=r"train/k-2: id .* is out of range"):
        set_statistics(shards)


def test_offsets_durations_and_counts_are_named(shards):
    path = shards / "val" / "00000.tar"
    members = dict(read_members(path))
    spoiled = {
        "val/k-0": members["val/k-0"]["json"].replace(b'"offset":0', b'"offset":2'),
        "val/k-1": members["val/k-1"]["json"].replace(b'"num_frames":', b'"num_frames":1'),
    }
    with tarfile.open(path, "w") as tar:
        for key, files in members.items():
            for name, data in files.items():
                data = spoiled[key] if name == "json" else data
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    reindex(shards, "val")
    found = faults(shards)
    assert "val/00000.tar: val/k-0: caption val/k-0-0: offset 2" in found
    assert "val/00000.tar: val/k-1: caption val/k-1-0: durations do not add up" in found
    assert "val/index.json: totals say 2 samples, there are 0" in found


def test_faults_of_the_set_as_a_whole_are_named(shards):
    (shards / "train" / "00007.tar.gz").write_bytes(b"")
    (shards / "statistics.json").write_text("{}")
    wrong = {**read_json(shards / "val" / "index.json"), "split": "train"}
    wrong["tokenizers"]["units"]["fingerprint"] = "f" * 16
    wrong["fingerprint"] = index.index_fingerprint(wrong)
    write_json(shards / "val" / "index.json", wrong)
    found = faults(shards, fingerprint="e" * 16)
    assert "train/00007.tar.gz: not listed in the index" in found
    assert "statistics.json: 2 bytes, contents.json says" in found
    assert "val/index.json: 983 bytes, contents.json says 981" in found
    assert "val/index.json: says that it is of split 'train'" in found
    assert f"val/index.json: codebook {'f' * 16}, but split 'train' has codebook" in found
    assert f"expected set {'e' * 16}" in found


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("totals", {}, "the total 'samples' is missing"),
        ("vocab", {"image": 40}, "'vocab.units' is no number"),
        ("tokenizers", {"units": {}, "image": None}, "'tokenizers.units' has no fingerprint"),
        ("fingerprint", None, "'fingerprint' is missing"),
        ("shards", [{"url": "../x.tar", "nsamples": 1, "filesize": 1, "sha256": ""}], "leads out of its folder"),
        ("shards", [7], "a shard's 'url' is missing"),
    ],
)
def test_an_index_without_its_fields_is_named_with_the_field(shards, field, value, words):
    path = shards / "val" / "index.json"
    write_json(path, {**read_json(path), field: value})
    assert f"{words}" in faults(shards) and "val/index.json" in faults(shards)


def test_members_that_others_would_unpickle_are_named_and_never_read(shards):
    path = shards / "val" / "00000.tar"
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("val/k-1.extra.pyd")
        data = b"cos\nsystem\n(S'touch owned'\ntR."
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    assert "val/k-1: the member 'val/k-1.extra.pyd' would be unpickled by stock webdataset" in faults(shards)
    assert [sample.key for sample in read_samples(shards, "val")] == ["val/k-0", "val/k-1"]


def test_compressed_shards_hold_the_same_and_are_smaller(shards, tmp_path):
    small = write_set(tmp_path / "small", SIZES, ".tar.gz")
    assert verify(small) == [] and [line for line in diff(shards, small)] == []
    sizes = [sum(shard["filesize"] for shard in read_index(s, "train")["shards"]) for s in (shards, small)]
    assert sizes[1] < 0.5 * sizes[0]
    again = write_set(tmp_path / "again", SIZES, ".tar.gz")
    for path in small.rglob("*.*"):
        assert path.read_bytes() == (again / path.relative_to(small)).read_bytes()


def test_statistics_are_what_counting_gives(shards):
    summary, _ = set_statistics(shards)
    samples = make_samples("train", 7)
    units = np.concatenate([c.units for s in samples for c in s.captions])
    found = summary["splits"]["train"]
    shares = np.bincount(units) / len(units)
    entropy = -sum(p * math.log2(p) for p in shares if p)
    assert found["units"]["total"] == len(units) and found["units"]["entropy"] == pytest.approx(entropy, abs=1e-3)
    assert found["units"]["perplexity"] == pytest.approx(2**entropy, rel=1e-3)
    assert found["image_tokens"]["used"] == len(np.unique([s.image for s in samples]))
    assert found["units_per_caption"]["max"] == max(len(c.units) for s in samples for c in s.captions)
    assert sum(found["units_per_caption"]["histogram"]["counts"]) == 14 and found["captions_per_image"] == {"2": 7}
    seconds = 0.02 * sum(int(c.durations.sum()) for s in samples for c in s.captions)
    assert found["bits_per_second"]["fixed_length"] == pytest.approx(len(units) / seconds * math.log2(12), rel=1e-3)
    assert found["bytes"]["on_disk"] == sum((shards / "train" / f"0000{n}.tar").stat().st_size for n in (0, 1))
    assert usage(np.array([5, 5, 0, 0]))["perplexity"] == 2 and usage(np.zeros(3, np.int64))["entropy"] == 0


def test_the_picture_is_svg_with_a_bar_for_each_figure(shards):
    root = ElementTree.fromstring((shards / "plots" / "statistics.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    found = read_json(shards / "statistics.json")["splits"].values()
    bars = sum(len(s[name]["ranked_shares"]) for s in found for name in ("units", "image_tokens"))
    bars += sum(len(s["units_per_caption"]["histogram"]["counts"]) for s in found)
    assert len(root.findall(f"{space}rect[@class='b']")) == bars
    assert "plots/statistics.svg" in (shards / "README.md").read_text()


def test_duplicates_across_splits_are_counted(tmp_path):
    shards = write_set(tmp_path / "set", {"test": [3], "tune": [4]})  # names of one length: samples of one seed
    summary, _ = set_statistics(shards)
    assert summary["across_splits"] == {"test, tune": {"captions": 6, "images": 3}}
    assert "Both test and tune hold 3 images and 6" in (shards / "README.md").read_text()
    assert summary["splits"]["test"]["duplicates"] == {"captions": 0, "images": 0}


def test_the_card_is_yaml_says_what_is_there_and_can_be_made_anew(shards):
    text = (shards / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["data_files"][0] == {"split": "train", "path": "train/*.tar"}
    for words in ("## Statistics", make_codebook().fingerprint, "{00000..00001}.tar", "## Citation\n\nUs, 2026"):
        assert words in text
    assert read_about(text) == ABOUT and read_about("").licence == "unknown"
    indexes = {split: read_index(shards, split) for split in SIZES}
    assert dataset_card(ABOUT, indexes, read_json(shards / "statistics.json")) == text
    said = CliRunner().invoke(command, ["card", str(shards), "--licence", "mit", "--write"])
    assert said.exit_code == 0 and "license: mit" in (shards / "README.md").read_text()
    assert read_about((shards / "README.md").read_text()) == dataclasses.replace(ABOUT, licence="mit")
    assert verify(shards) == []  # the card may be edited


def test_info_draws_histograms_and_stats_prints_json(shards, tmp_path):
    said = CliRunner().invoke(command, ["info", str(shards)])
    for words in ("set ", "7 samples", "perplexity", "bit/s", "units a caption", "most to least used", "█"):
        assert words in said.stdout
    assert "perplexity" not in CliRunner().invoke(command, ["info", str(shards), "--quick"]).stdout
    assert json.loads(CliRunner().invoke(command, ["stats", str(shards)]).stdout)["splits"].keys() == SIZES.keys()
    assert CliRunner().invoke(command, ["stats", str(shards), "--out", str(tmp_path / "s")]).exit_code == 0
    header, *rows = (tmp_path / "s" / "plots" / "val" / "unit_usage.csv").read_text().splitlines()
    assert header == "rank,share" and len(rows) == 12
    assert sparkline([0, 1, 100]) == " ▁█" and sparkline([]) == ""


def test_diff_names_tokenizers_keys_and_samples(shards, tmp_path):
    assert CliRunner().invoke(command, ["diff", str(shards), str(shards)]).exit_code == 0
    other = write_set(tmp_path / "other", {"train": [4, 2], "test": [1]})
    change_shard(
        other / "train" / "00000.tar",
        lambda s: dataclasses.replace(s, image=npy_swapped(s.image)) if s.key == "train/k-3" else s,
    )
    path = other / "train" / "index.json"
    found = read_json(path)
    found["tokenizers"]["units"]["layer"] = 3
    found["fingerprint"] = index.index_fingerprint(found)
    write_json(path, found)
    lines = "\n".join(diff(shards, other))
    assert f"test: only in {other}" in lines and f"val: only in {shards}" in lines
    assert "train: units tokenizer: layer: 2 | 3" in lines
    assert f"train: keys only in {shards}: 1 (train/k-6)" in lines
    assert "train: other image tokens: 1 (train/k-3)" in lines and "other units" not in lines
    assert CliRunner().invoke(command, ["diff", str(shards), str(other)]).exit_code == 1


def npy_swapped(image: np.ndarray) -> np.ndarray:
    changed = image.copy()
    changed[0, 0] = (changed[0, 0] + 1) % 40
    return changed


def test_npy_headers_of_other_writers_are_read(shards):
    from pipeline.tokens.sample import npy_array

    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    for version in ((1, 0), (2, 0), (3, 0)):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, array, version=version)
        assert np.array_equal(npy_array(stream.getvalue(), "x", num_dims=2), array)
    assert npy_bytes(array)[:8] == b"\x93NUMPY\x01\x00"
