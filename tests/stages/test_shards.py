"""The shards stage on synthetic parts: joined by number, nothing lost, strangers refused, same bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.errors import InputError
from pipeline.files import read_json, write_json
from pipeline.manifest import read_rejects, read_rows, read_split, write_rows
from pipeline.speech.kmeans import Codebook
from pipeline.tokens.carried import read_image_codebook
from pipeline.tokens.parts import read_images_part, read_units_part
from pipeline.tokens.read import read_index, read_samples, split_names
from pipeline.tokens.verify import verify
from stages import shards
from stages._cli import StageContext
from stages._settings import Settings
from tests.pipeline.tokens.synthetic import SPLITS, write_corpus


def run(root: Path, out: str = "shards", *, workers: int = 1, limit: int | None = None, **params) -> Path:
    settings = Settings(workers, 1, "cpu", "loky", root / "scratch", root / "logs")
    shards.run(
        shards.Params(**params),
        StageContext("shards", settings, limit=limit),
        root=root / "corpus",
        manifests=root / "manifests",
        codebook=root / "codebook.safetensors",
        vqgan=root / "vqgan",
        units=root / "units",
        images=root / "images",
        out=root / out,
    )
    return root / out


def test_every_row_becomes_a_sample(tmp_path):
    write_corpus(tmp_path)
    out = run(tmp_path)
    assert split_names(out) == ["train", "val"] and verify(out) == []
    for split, num_shards in SPLITS.items():
        rows = read_split(tmp_path / "manifests", split)
        samples = list(read_samples(out, split))
        assert [s.key for s in samples] == [row.key for row in rows]
        index = read_index(out, split)
        assert [s["url"] for s in index["shards"]] == [f"{n:05d}.tar" for n in range(num_shards)]
        totals = index["totals"]
        assert (totals["images"], totals["captions"]) == (len(rows), 2 * len(rows))
        assert totals["seconds"] == 2 * len(rows) and index["vocab"] == {"image": 300, "units": 50}
        units = read_units_part(tmp_path / "units" / split / "00000.npz")
        images = read_images_part(tmp_path / "images" / split / "00000.npz")
        first = samples[0]
        assert np.array_equal(first.image, images.tokens[images.index()[first.key]])
        expected = units.utterance(units.index()[first.captions[1].id])
        assert np.array_equal(first.captions[1].units, expected[0]) and first.captions[1].text == "a café, nº 1"
        assert first.jpg == (tmp_path / "corpus" / f"{first.key}.jpg").read_bytes()
    assert (out / "README.md").is_file() and read_rejects(out / "rejects.jsonl") == []


def test_rejects_and_samples_add_up_to_what_went_in(tmp_path):
    write_corpus(
        tmp_path,
        missing_units=frozenset({"train/im-0-0", "train/im-1-0", "train/im-1-1"}),
        missing_images=frozenset({"train/im-2", "val/im-12"}),
    )
    (tmp_path / "corpus" / "train" / "im-3.jpg").write_bytes(b"\xff\xd8\xffgone")
    out = run(tmp_path, max_reject_fraction=0.9)
    rejects = read_rejects(out / "rejects.jsonl")
    totals = [read_index(out, split)["totals"] for split in SPLITS]
    assert sum(t["samples"] for t in totals) + sum(not r.id for r in rejects) == 16
    assert sum(t["captions"] for t in totals) + sum(bool(r.id) for r in rejects) == 32
    reasons = {(r.key, r.id): r.reason for r in rejects}
    assert reasons["train/im-0", "train/im-0-0"] == "no units: audio is too short: 100 samples"
    assert reasons["train/im-1", ""] == "no caption left"
    assert reasons["train/im-2", ""].startswith("no image tokens")
    assert reasons["train/im-3", ""].startswith("picture changed since the manifest was made")
    assert len(next(read_samples(out, "train")).captions) == 1
    assert read_index(out, "val")["rejects"] == {"its image was left out": 2, "no image tokens": 1}
    assert verify(out) == []
    with pytest.raises(InputError, match="max_reject_fraction=0.1"):
        run(tmp_path, "again", max_reject_fraction=0.1)


def test_speech_without_pictures(tmp_path):
    write_corpus(tmp_path)
    for path in sorted((tmp_path / "manifests").rglob("*.jsonl")):
        write_rows(path, [type(row)(row.key, None, row.captions) for row in read_rows(path)])
    for path in sorted((tmp_path / "images").rglob("*.*")):
        path.unlink()
    out = run(tmp_path)
    sample = next(read_samples(out, "train"))
    assert sample.image is None and sample.jpg is None and len(sample.captions) == 2
    assert read_index(out, "train")["totals"]["images"] == 0 and verify(out) == []
    assert read_rejects(out / "rejects.jsonl") == []


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_same_bytes_for_any_number_of_workers(tmp_path, compression):
    write_corpus(tmp_path)
    trees = [run(tmp_path, f"w{workers}", workers=workers, compression=compression) for workers in (1, 2)]
    first, second = ({p.relative_to(t): p.read_bytes() for p in t.rglob("*") if p.is_file()} for t in trees)
    assert first == second


def test_without_pixels_or_with_smaller_ones(tmp_path):
    write_corpus(tmp_path)
    assert next(read_samples(run(tmp_path, "a", include_pixels=False), "val")).jpg is None
    small = next(read_samples(run(tmp_path, "b", pixel_size=8), "val")).jpg
    path = tmp_path / "small.jpg"
    path.write_bytes(small)
    from pipeline.media import read_image

    assert read_image(path).size == (12, 8)


def test_a_set_carries_its_codebooks_unless_told_otherwise(tmp_path):
    write_corpus(tmp_path)
    codebook = Codebook(np.eye(50, dtype=np.float32), {"encoder": "tiny"})
    codebook.save(tmp_path / "codebook.safetensors")
    path = tmp_path / "units" / "units.json"
    write_json(path, {**read_json(path), "codebook_fingerprint": codebook.fingerprint})
    (tmp_path / "vqgan").mkdir()
    weights = {"quantizer.embedding.weight": np.ones((300, 2), np.float32), "decoder.x": np.zeros(9, np.float32)}
    save_file(weights, tmp_path / "vqgan" / "model.safetensors", {"fingerprint": "t" * 16})
    out = run(tmp_path)
    assert (out / "tokenizers" / "units.safetensors").read_bytes() == (tmp_path / "codebook.safetensors").read_bytes()
    assert read_image_codebook(out / "tokenizers" / "image.safetensors")[0].shape == (300, 2)
    assert verify(out, codebook=codebook.fingerprint, image_tokenizer="t" * 16) == []
    assert not (run(tmp_path, "without", include_codebooks=False) / "tokenizers").exists()


def test_limit_takes_rows_of_each_split(tmp_path):
    write_corpus(tmp_path)
    out = run(tmp_path, limit=5)
    assert [len(list(read_samples(out, split))) for split in SPLITS] == [5, 4]


def test_units_of_another_codebook_are_refused_by_both_fingerprints(tmp_path):
    write_corpus(tmp_path)
    codebook = Codebook(np.eye(3, dtype=np.float32), {"encoder": "other"})
    codebook.save(tmp_path / "codebook.safetensors")
    with pytest.raises(InputError, match=f"{'c' * 16}.*{codebook.fingerprint}"):
        run(tmp_path)


def test_tokens_of_another_image_tokenizer_are_refused_by_both_fingerprints(tmp_path):
    write_corpus(tmp_path)
    (tmp_path / "vqgan").mkdir()
    save_file({"x": np.zeros(1)}, tmp_path / "vqgan" / "model.safetensors", {"fingerprint": "d" * 16})
    with pytest.raises(InputError, match=f"{'t' * 16}.*{'d' * 16}"):
        run(tmp_path)


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    write_corpus(tmp_path)
    path = tmp_path / "units" / "units.json"
    about = read_json(path)
    write_json(path, {**about, "num_units": 3})
    with pytest.raises(InputError, match=f"unit .* does not exist in codebook {'c' * 16} of 3 units"):
        run(tmp_path)
    write_json(path, {k: v for k, v in about.items() if k != "codebook_fingerprint"})
    with pytest.raises(InputError, match="units.json: the field 'codebook_fingerprint' is missing"):
        run(tmp_path)
    write_json(path, about)
    path = tmp_path / "images" / "tokenizer.json"
    write_json(path, {**read_json(path), "grid": [8, 8]})
    with pytest.raises(InputError, match=rf"grids of \(4, 4\) tokens, image tokenizer {'t' * 16}"):
        run(tmp_path)
    write_json(path, {**read_json(path), "grid": [4, 4]})
    rows = tmp_path / "manifests" / "val" / "00000.jsonl"
    write_rows(rows, read_rows(rows)[1:])
    with pytest.raises(InputError, match="made from another manifest"):
        run(tmp_path)


def test_tokens_info_and_verify_commands(tmp_path):
    from typer.testing import CliRunner

    from stages.tools.tokens import command

    write_corpus(tmp_path)
    out = run(tmp_path)
    said = CliRunner().invoke(command, ["info", str(out)])
    assert said.exit_code == 0 and "c" * 16 in said.stdout and "12 samples" in said.stdout
    assert CliRunner().invoke(command, ["verify", str(out)]).exit_code == 0
    shard = out / "val" / "00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"a caf", b"a CAF", 1))
    said = CliRunner().invoke(command, ["verify", str(out)])
    assert said.exit_code == 1 and "val/00000.tar: its SHA-256" in said.stdout


def test_summary_holds_counts_only(tmp_path):
    write_corpus(tmp_path)
    summary = (run(tmp_path) / "summary.json").read_text()
    assert json.loads(summary)["counts"]["samples"] == 16 and str(tmp_path) not in summary
