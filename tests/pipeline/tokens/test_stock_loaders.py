"""Everyone's loaders read the shards with none of our code: webdataset, wids, datasets, tarfile and numpy.

Each is the real package; `datasets` is not among the tool kit's own dependencies and is skipped where it is missing.
"""

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.http_server import serve
from tests.pipeline.tokens.making import make_samples, write_set

SUFFIXES = [".tar", ".tar.gz"]
EXPECTED = make_samples("train", 5)


@pytest.fixture(scope="module", params=SUFFIXES)
def shards(request, tmp_path_factory) -> tuple[Path, str]:
    return write_set(tmp_path_factory.mktemp("stock") / "set", {"train": [3, 2]}, request.param), request.param


def check(found: list[dict[str, Any]], *, arrow: bool = False) -> None:
    """Decoded samples as webdataset names their parts. arrow: gives lists of Python's integers for arrays."""
    assert [sample["__key__"] for sample in found] == [sample.key for sample in EXPECTED]
    for sample, expected in zip(found, EXPECTED, strict=True):
        assert arrow or sample["image.npy"].dtype == sample["units.npy"].dtype == np.uint16
        assert np.array_equal(sample["image.npy"], expected.image)
        assert len(sample["json"]["captions"]) == len(expected.captions)
        for record, caption in zip(sample["json"]["captions"], expected.captions, strict=True):
            here = slice(record["offset"], record["offset"] + record["num_units"])
            units, durations = np.asarray(sample["units.npy"])[here], np.asarray(sample["durations.npy"])[here]
            assert record["id"] == caption.id and record["text"] == caption.text
            assert np.array_equal(np.repeat(units, durations), np.repeat(caption.units, caption.durations))


def test_webdataset_from_a_folder(shards):
    webdataset = pytest.importorskip("webdataset")
    folder, suffix = shards
    url = str(folder / "train" / "{00000..00001}") + suffix
    check(list(webdataset.WebDataset(url, shardshuffle=False).decode()))


def test_webdataset_over_http_without_a_pipe(shards, monkeypatch):
    webdataset = pytest.importorskip("webdataset")
    schemes = importlib.import_module("webdataset.gopen").gopen_schemes
    folder, suffix = shards

    def open_url(url, mode="rb", bufsize=8192, **options):
        return urllib.request.urlopen(url)

    monkeypatch.setitem(schemes, "http", open_url)
    with serve(folder) as url:
        check(list(webdataset.WebDataset(f"{url}/train/{{00000..00001}}{suffix}", shardshuffle=False).decode()))


def test_webdataset_in_its_secure_mode_and_with_workers(shards, tmp_path):
    pytest.importorskip("webdataset")
    folder, suffix = shards
    code = f"""
import sys, webdataset
from torch.utils.data import DataLoader
urls = [sys.argv[1] + name + {suffix!r} for name in ("/train/00000", "/train/00001")]
data = webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("__key__", "units.npy", "json")
print(sorted(key for key, units, about in DataLoader(data, batch_size=None, num_workers=2)))
"""
    environment = {**os.environ, "WDS_SECURE": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == str([sample.key for sample in EXPECTED]), done.stderr


def test_wids_reads_the_index_at_random(shards, tmp_path):
    wids = pytest.importorskip("wids")
    folder, suffix = shards
    if suffix == ".tar.gz":
        pytest.skip("wids cannot seek in gzip; the card says so")
    (tmp_path / "cache").mkdir()
    url = str(folder / "train" / "index.json")
    dataset = wids.ShardListDataset(url, cache_dir=str(tmp_path / "cache"), keep=True)
    assert len(dataset) == 5
    for place in (4, 0, 3):
        found = {name.removeprefix("."): value for name, value in dataset[place].items()}
        assert found["__key__"] == EXPECTED[place].key
        assert np.array_equal(found["image.npy"], EXPECTED[place].image)
        assert found["json"]["captions"][1]["id"] == EXPECTED[place].captions[1].id


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_it_as_webdataset(shards, tmp_path, streaming):
    datasets = pytest.importorskip("datasets")
    folder, suffix = shards
    files = {"train": [str(folder / "train" / f"0000{n}{suffix}") for n in (0, 1)]}
    loaded = datasets.load_dataset(
        "webdataset", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path)
    )
    check(list(loaded), arrow=True)


def test_datasets_finds_the_splits_by_the_card(shards, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder, _ = shards
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert list(loaded) == ["train"] and len(loaded["train"]) == 5
    check(list(loaded["train"]), arrow=True)


def test_tarfile_and_numpy(shards):
    folder, suffix = shards
    samples: dict[str, dict[str, Any]] = {}
    for name in ("00000", "00001"):
        with tarfile.open(folder / "train" / f"{name}{suffix}") as tar:
            for member in tar:
                directory, _, base = member.name.rpartition("/")
                stem, _, part = base.partition(".")
                data = tar.extractfile(member).read()
                sample = samples.setdefault(f"{directory}/{stem}", {})
                sample[part] = json.loads(data) if part == "json" else np.load(io.BytesIO(data), allow_pickle=False)
    check([{"__key__": key, **sample} for key, sample in samples.items()])
