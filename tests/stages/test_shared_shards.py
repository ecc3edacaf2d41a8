"""Shards made elsewhere: two commands train on them, without raw data; what does not belong together is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.files import read_json, write_json
from pipeline.speech.kmeans import Codebook
from pipeline.tokens import carried, index
from pipeline.tokens.contents import write_contents
from stages import evaluate, train
from tests.http_server import serve
from tests.stages.made_shards import BUNDLED, context, make_shards

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--steps", "2", "--evaluate-every", "2", "--batch-size", "8"]
SMALL += ["--num-pieces", "0", "--num-validation-images", "2"]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """What somebody else published: synthetic tokens said to be of the bundled image tokenizer and of a codebook."""
    return make_shards(tmp_path_factory.mktemp("publisher"))


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "I2S_THREADS": "1"}
    words = [sys.executable, "-m", "stages", *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pulled(published, tmp_path_factory) -> Path:
    """A folder that holds nothing but params.yaml and a pulled set."""
    fresh = tmp_path_factory.mktemp("fresh")
    shutil.copy(ROOT / "params.yaml", fresh)
    with serve(published) as url:
        done = command("tokens", "pull", url, "shards", cwd=fresh)
    assert done.returncode == 0, done.stderr
    return fresh


def test_two_commands_train_on_shards_made_elsewhere(published, pulled):
    done = command("train", "--shards", "shards", "--init", "none", *SMALL, "--out", "trained", cwd=pulled)
    assert done.returncode == 0, done.stderr
    vocabulary = read_json(pulled / "trained" / "model" / "unit_vocabulary.json")
    units = read_json(published / "train" / "index.json")["tokenizers"]["units"]
    assert vocabulary["codebook_fingerprint"] == units["fingerprint"]
    config = read_json(pulled / "trained" / "model" / "config.json")
    assert config["image_tokenizer"] == carried.read_image_codebook(BUNDLED / "model.safetensors")[1]


def run_train(folder: Path, tmp_path: Path, **paths: Path) -> None:
    params = train.Params(init="none", steps=1, evaluate_every=1, num_pieces=0, num_validation_images=1)
    train.run(params, context(tmp_path, "train"), shards=folder, out=tmp_path / "out", **paths)


@pytest.fixture
def copied(pulled, tmp_path) -> Path:
    return Path(shutil.copytree(pulled / "shards", tmp_path / "copy"))


def test_training_refuses_another_image_tokenizer_by_both_fingerprints(copied, tmp_path):
    own = read_json(copied / "train" / "index.json")["tokenizers"]["image"]["fingerprint"]
    other = tmp_path / "vqgan"
    other.mkdir()
    data = (BUNDLED / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(data.replace(own.encode(), b"f" * 16))
    with pytest.raises(InputError, match=f"{'f' * 16}.*{own}"):
        run_train(copied, tmp_path, vqgan=other)
    shutil.copy(other / "model.safetensors", copied / "tokenizers" / "image.safetensors")
    with pytest.raises(InputError, match=f"{'f' * 16}.*{own}"):
        run_train(copied, tmp_path)


def test_training_refuses_a_swapped_unit_codebook_by_both_fingerprints(copied, tmp_path):
    own = read_json(copied / "train" / "index.json")["tokenizers"]["units"]["fingerprint"]
    other = Codebook(np.zeros((50, 4), np.float32), {"layer": 3})
    other.save(copied / "tokenizers" / "units.safetensors")
    with pytest.raises(InputError, match=f"{other.fingerprint}.*{own}"):
        run_train(copied, tmp_path)


def test_training_refuses_splits_of_two_codebooks_by_both_fingerprints(copied, tmp_path):
    path = copied / "val" / "index.json"
    found = read_json(path)
    own = found["tokenizers"]["units"]["fingerprint"]
    found["tokenizers"]["units"]["fingerprint"] = "e" * 16
    found["fingerprint"] = index.index_fingerprint(found)
    write_json(path, found)
    write_contents(copied)
    with pytest.raises(InputError, match=f"'train' is of codebook {own}, split 'val' of {'e' * 16}"):
        run_train(copied, tmp_path)


def test_a_set_without_codebooks_falls_back_on_the_bundled_tokenizer_if_it_is_that(copied, tmp_path):
    shutil.rmtree(copied / "tokenizers")
    run_train(copied, tmp_path)
    for split in ("train", "val"):
        path = copied / split / "index.json"
        found = read_json(path)
        found["tokenizers"]["image"]["fingerprint"] = "d" * 16
        write_json(path, found)
    with pytest.raises(InputError, match=f"were made by {'d' * 16}; the set carries no .*--vqgan"):
        run_train(copied, tmp_path)


def test_evaluation_refuses_tokens_that_the_captioner_did_not_learn(tmp_path):
    captioner = SimpleNamespace(
        vocabulary=SimpleNamespace(codebook_fingerprint="a" * 16),
        model=SimpleNamespace(config=SimpleNamespace(input="tokens", image_tokenizer="b" * 16)),
    )
    write_json(tmp_path / "units" / "units.json", {"codebook_fingerprint": "a" * 16})
    write_json(tmp_path / "images" / "tokenizer.json", {"tokenizer_fingerprint": "b" * 16})
    where = tmp_path / "model", captioner, tmp_path / "units", tmp_path / "images"
    evaluate._refuse_other_tokens(*where)
    write_json(tmp_path / "images" / "tokenizer.json", {"tokenizer_fingerprint": "c" * 16})
    with pytest.raises(InputError, match=f"image tokenizer {'c' * 16}, .* trained on image tokenizer {'b' * 16}"):
        evaluate._refuse_other_tokens(*where)
    write_json(tmp_path / "units" / "units.json", {"codebook_fingerprint": "d" * 16})
    with pytest.raises(InputError, match=f"codebook {'d' * 16}, .* trained on codebook {'a' * 16}"):
        evaluate._refuse_other_tokens(*where)
