"""The stages vqgan and images on drawn pictures: tokens, rejects, workers, and a tokenizer trained or taken."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.corpora.world.draw import render
from pipeline.corpora.world.scenes import sample_scene
from pipeline.errors import InputError
from pipeline.files import read_json, sha256_file
from pipeline.manifest import Caption, Image, Row, read_rejects, write_splits
from pipeline.tokens.parts import read_images_part
from pipeline.vision.lpips import LPIPS
from pipeline.vision.vit_vqgan import load_vit_vqgan
from stages import images, vqgan
from stages._cli import StageContext
from stages._settings import Settings

TINY = vqgan.Params(
    source="train",
    image_size=32,
    patch_size=8,
    num_codes=32,
    code_dim=8,
    dim=16,
    decoder_depth=1,
    steps=20,
    images_per_step=4,
    eval_images=6,
)


def context(tmp_path: Path, workers: int = 1, **options) -> StageContext:
    settings = Settings(workers, 1, "cpu", "loky", tmp_path / f"scratch{workers}", tmp_path / "logs")
    return StageContext("images", settings, **options)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Nine pictures in two splits, one of them cut short; manifests beside them."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[Row]] = {"train": [], "val": []}
    for number in range(9):
        path = tmp_path / "corpus" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        render(sample_scene(rng, "train"), rng).save(path)
        if number == 3:
            path.write_bytes(path.read_bytes()[:200])
        image = Image(path.name, 128, 128, sha256_file(path))
        caption = Caption(f"c{number}", "a.wav", 16000, 16000, "0" * 64, "", "a scene")
        splits["val" if number > 6 else "train"].append(Row(f"k{number}", image, (caption,)))
    splits["train"].append(Row("speech-alone", None, (Caption("s", "a.wav", 1, 1, "0" * 64, "", ""),)))
    write_splits(tmp_path / "manifests", splits, rows_per_shard=3, seed=0)
    return tmp_path / "corpus"


def provide(tmp_path: Path, params: vqgan.Params = TINY) -> Path:
    out = tmp_path / "vqgan"
    vqgan.run(params, context(tmp_path), root=tmp_path / "corpus", manifests=tmp_path / "manifests", out=out)
    return out


def encode(tmp_path: Path, name: str, workers: int = 1, **options) -> Path:
    images.run(
        images.Params(max_reject_fraction=0.2, batch_size=2),
        context(tmp_path, workers, **options),
        root=tmp_path / "corpus",
        manifests=tmp_path / "manifests",
        vqgan=tmp_path / "vqgan",
        out=tmp_path / name,
    )
    return tmp_path / name


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_tokenizer_is_trained_and_measured(tmp_path, corpus):
    out = provide(tmp_path)
    figures = read_json(out / "metrics.json")
    assert figures["num_images"] == 2 and 0 < figures["usage"] <= 1 and figures["perplexity"] >= 1
    assert len((out / "usage.csv").read_text().splitlines()) == 33
    assert (out / "training.csv").read_text().count("\n") >= 2
    first = contents(out)
    assert set(first) >= {"config.json", "model.safetensors", "reconstructions.png"}
    assert first == contents(provide(tmp_path))


@pytest.mark.parametrize("pictures", ["memory", "stream"])
def test_pictures_that_cannot_be_trained_on_are_counted_and_named(tmp_path, corpus, pictures, capsys):
    provide(tmp_path, TINY.model_copy(update={"pictures": pictures}))
    assert "trained on that cannot be read: 1;" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "logs" / "images.jsonl").read_text().splitlines()]
    (found,) = [line for line in lines if line.get("event") == "unreadable"]
    assert str(corpus / "3.jpg") in found["reason"] and found["purpose"] == "trained on"


def test_another_tokenizer_is_taken_and_fine_tuned(tmp_path, corpus):
    source = provide(tmp_path).rename(tmp_path / "mine")
    fingerprint = load_vit_vqgan(source).fingerprint
    taken = provide(tmp_path, vqgan.Params(source="path", path=str(source)))
    assert load_vit_vqgan(taken).fingerprint == fingerprint
    tuned = provide(tmp_path, TINY.model_copy(update={"source": "finetune", "path": str(source), "steps": 3}))
    assert load_vit_vqgan(tuned).fingerprint != fingerprint
    with pytest.raises(InputError, match="'path'"):
        provide(tmp_path, vqgan.Params(source="path"))


def test_every_readable_picture_gets_tokens_whatever_the_number_of_workers(tmp_path, corpus):
    model = load_vit_vqgan(provide(tmp_path))
    out = encode(tmp_path, "images")
    parts = [read_images_part(path) for path in sorted(out.rglob("*.npz"))]
    assert len(parts) == 4 and sum(map(len, parts)) == 8
    assert all(part.tokens.shape[1:] == model.grid and part.tokens.dtype == np.uint16 for part in parts)
    assert {str(key) for part in parts for key in part.keys} == {f"k{n}" for n in range(9)} - {"k3"}
    (reject,) = read_rejects(out / "rejects.jsonl")
    assert (reject.key, reject.stage) == ("k3", "images") and reject.reason.startswith("unreadable image: ")
    assert str(tmp_path) not in reject.reason
    about = read_json(out / "tokenizer.json")
    assert about["tokenizer_fingerprint"] == model.fingerprint and about["vocab"] == 32
    assert about["grid"] == [4, 4]
    assert contents(out) == contents(encode(tmp_path, "again", workers=2))


def test_too_many_unreadable_pictures_stop_the_stage(tmp_path, corpus):
    provide(tmp_path)
    for number in (1, 2, 5):
        (corpus / f"{number}.jpg").unlink()
    with pytest.raises(InputError, match="unreadable image"):
        encode(tmp_path, "images")
    assert not (tmp_path / "images").exists()


def test_a_trial_takes_a_few_rows_and_a_dry_run_writes_nothing(tmp_path, corpus):
    provide(tmp_path)
    assert not encode(tmp_path, "dry", dry_run=True).exists()
    trial = encode(tmp_path, "trial", limit=1)
    assert sum(len(read_images_part(path)) for path in trial.rglob("*.npz")) <= 2


def test_a_tokenizer_trains_with_everything_from_a_stream(tmp_path, corpus):
    torch.manual_seed(0)
    network = LPIPS()
    for head in network.heads:
        head.data.uniform_(0, 1)
    names = {f"heads.{n}": f"lin{n}.model.1.weight" for n in range(5)}
    state = {names.get(name, name): value for name, value in network.state_dict().items()}
    save_file(state, tmp_path / "lpips.safetensors")
    full = {
        "perceptual_weights": str(tmp_path / "lpips.safetensors"),
        "adversarial_weight": 0.1,
        "discriminator_layers": 2,
        "discriminator_channels": 4,
        "pictures": "stream",
        "augment": "crop_flip",
        "average_decay": 0.9,
        "mlp_ratio": 4,
        "steps": 3,
    }
    out = provide(tmp_path, TINY.model_copy(update=full))
    first = contents(out)
    assert first == contents(provide(tmp_path, TINY.model_copy(update=full)))
    figures = read_json(out / "metrics.json")
    assert figures["lpips"] > 0 and figures["frechet_vgg"] >= 0
    header = (out / "training.csv").read_text().splitlines()[0]
    extra = "adversarial,adversarial_weight,discriminator,perceptual"
    assert header == f"step,l1,l2,codebook,rate,used,{extra}"
    assert load_vit_vqgan(out).config.encoder.mlp_dim == 64
    with pytest.raises(InputError, match="augment: crop_flip needs pictures: stream"):
        provide(tmp_path, TINY.model_copy(update={"augment": "crop_flip"}))
    with pytest.raises(InputError, match="nowhere"):
        provide(tmp_path, TINY.model_copy(update={"perceptual_weights": str(tmp_path / "nowhere")}))
