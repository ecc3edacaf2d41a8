"""docs/reproduce.md, command by command, against miniature stand-ins: right formats, random weights, a local server."""

import functools
import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import yaml
from sklearn.cluster import MiniBatchKMeans
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from pipeline.files import read_json, write_json
from pipeline.vision.vit_vqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from stages.__main__ import build_app
from tests.pipeline.checkpoints.miniatures import hubert_model, save_hubert
from tests.pipeline.checkpoints.test_captioner import git, image_unit_checkpoint
from tests.pipeline.checkpoints.test_vocoder import CONFIG, generator
from tests.pipeline.corpora.conftest import flickr8k, spokencoco

__all__ = ["flickr8k", "spokencoco"]

ROOT = Path(__file__).resolve().parent.parent


def commands() -> list[str]:
    text = (ROOT / "docs/reproduce.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


# ------------------------------------------------------------------------------------------- the stand-ins


def packed(files: dict[str, bytes], kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz" if kind == "tar.gz" else "w") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def below(folder: Path, part: str) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted((folder / part).rglob("*")) if p.is_file()}


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def seit_weights(folder: Path) -> dict[str, bytes]:
    torch.manual_seed(0)
    sizes = (TransformerConfig(16, 1, 1, 16), TransformerConfig(16, 1, 1, 16))
    model = ViTVQGAN(ViTVQGANConfig(256, 8, *sizes, n_embed=10, embed_dim=8))
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("quantizer")}
    return {"SeiT_weights/tokenizer.ckpt": saved(tensors), "SeiT_weights/codebook.ckpt": saved(torch.randn(30, 8) * 2)}


def recogniser(folder: Path) -> dict[str, bytes]:
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    write_json(folder / "vocab.json", {letter: number for number, letter in enumerate(letters)})
    Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
        conv_dim=[8] * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def models(folder: Path) -> dict[str, dict[str, bytes]]:
    """Entry -> its files."""
    save_hubert(folder / "hubert.pt", hubert_model("base", layers=6), "fairseq")
    features = np.random.default_rng(0).normal(size=(600, 128)).astype(np.float32)
    joblib.dump(MiniBatchKMeans(200, n_init=1, random_state=0, max_iter=2).fit(features), folder / "km.bin")
    git(vocab=300, image_size=32).save_pretrained(folder / "git")
    return {
        "hubert-base-ls960": {"hubert_base_ls960.pt": (folder / "hubert.pt").read_bytes()},
        "hubert-km200": {"km.bin": (folder / "km.bin").read_bytes()},
        "seit": {"SeiT_weights.tar": packed(seit_weights(folder), "tar")},
        "git-large-coco": {name: (folder / "git" / name).read_bytes() for name in ("config.json", "model.safetensors")},
        "wav2vec2-large-960h-lv60-self": recogniser(folder / "wav2vec2"),
    }


def by_hand(downloads: Path, pictures: bytes) -> None:
    """What a person downloads with a browser."""
    config = {**CONFIG, "num_embeddings": 200}
    (downloads / "vocoder").mkdir(parents=True)
    write_json(downloads / "vocoder/config.json", config)
    torch.save({"generator": generator(num_embeddings=200).state_dict()}, downloads / "vocoder/g_00950000")
    state = {f"model.{name}": value for name, value in git().state_dict().items()}
    torch.save({"state_dict": state}, downloads / "Im_Sp.ckpt")
    image_unit_checkpoint(downloads, grid=14)
    (downloads / "Flickr8k_Dataset.zip").write_bytes(pictures)


@pytest.fixture
def project(tmp_path: Path, spokencoco: Path, flickr8k: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The repository's presets and registry, with addresses and hashes of a local server's stand-ins."""
    served = tmp_path / "served"
    work = tmp_path / "made"
    work.mkdir()
    files = models(work)
    karpathy = {"dataset_coco.json": (spokencoco / "dataset_coco.json").read_bytes()}
    images = [
        {"filename": path.name, "split": split, "sentences": [{"raw": f"A child number {n}."} for n in range(5)]}
        for split, name in (("train", "train"), ("val", "dev"), ("test", "test"))
        for path in map(Path, (flickr8k / f"Flickr8k_text/Flickr_8k.{name}Images.txt").read_text().split())
    ]
    karpathy["dataset_flickr8k.json"] = json.dumps({"dataset": "flickr8k", "images": images}).encode()
    files |= {
        "spokencoco": {"SpokenCOCO.tar.gz": packed(below(spokencoco, "SpokenCOCO"), "tar.gz")},
        "coco2014": {f"{p}2014.zip": packed(below(spokencoco, f"{p}2014"), "zip") for p in ("train", "val")},
        "karpathy": {"caption_datasets.zip": packed(karpathy, "zip")},
        "flickr8k-audio": {"flickr_audio.tar.gz": packed(below(flickr8k, "flickr_audio"), "tar.gz")},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path / "project"
    shutil.copytree(ROOT / "presets", home / "presets")
    registry = yaml.safe_load((ROOT / "manifests/models.yaml").read_text())
    for entry, contents in files.items():
        published = {item.get("name") or item["url"].split("/")[-1] for item in registry[entry]["files"]}
        assert entry.startswith("wav2vec2") or published == set(contents), entry
        registry[entry]["files"] = []
        for name, data in contents.items():
            (served / entry).mkdir(parents=True, exist_ok=True)
            (served / entry / name).write_bytes(data)
            url = f"http://127.0.0.1:{server.server_address[1]}/{entry}/{name}"
            registry[entry]["files"].append({"url": url, "sha256": hashlib.sha256(data).hexdigest()})
    (home / "manifests").mkdir()
    (home / "manifests/models.yaml").write_text(yaml.safe_dump(registry))
    by_hand(home / "downloads", packed(below(flickr8k, "Flicker8k_Dataset"), "zip"))
    monkeypatch.chdir(home)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("I2S_WORKERS", "1")
    monkeypatch.setenv("I2S_THREADS", "1")
    yield home
    server.shutdown()
    server.server_close()


SMALL = {
    "manifest": {"rows_per_shard": 2, "max_reject_fraction": 0.3},
    "vqgan": {"eval_images": 2},
    "shards": {"max_reject_fraction": 0.3},
    "train": {"batch_size": 2, "steps": 2, "warmup_steps": 1, "evaluate_every": 2, "max_length": 48},
    "evaluate": {"bootstrap_samples": 20, "java_metrics": False},
}


def miniature(params: Path) -> None:
    """The preset's own values but for sizes that a miniature corpus does not have."""
    document = yaml.safe_load(params.read_text())
    for section, values in SMALL.items():
        document[section].update(values)
    params.write_text(yaml.safe_dump(document))


def test_every_command_of_the_page(project: Path, capsys: pytest.CaptureFixture) -> None:
    app = build_app()
    done = []
    for line in commands():
        words = shlex.split(line)
        if words[0] != "im2speech":
            subprocess.run(["bash", "-c", line], check=True, cwd=project)
            continue
        app(words[1:], standalone_mode=False)
        done.append(words[1])
        if words[1] == "use":
            miniature(project / "params.yaml")
    assert set(done) == {
        *("fetch", "import", "use", "manifest", "features", "kmeans", "units", "vqgan", "images"),
        *("shards", "tokens", "vocoder", "train", "evaluate"),
    }
    for out in ("evaluate-pixels", "evaluate-image-units", "evaluate"):
        assert {"ground_truth", "resynthesis", "prediction"} <= set(
            read_json(project / f"data/{out}/metrics.json")["test"]
        )
    # Ids of Flickr8k are hexadecimal, which the reference's scorer cannot take.
    for out in ("evaluate-image-units", "evaluate-pixels"):
        scores = read_json(project / f"data/flickr8k/{out}/metrics.json")["test"]
        assert "bleu4" in scores["prediction"]
    predictions = (project / "data/flickr8k/evaluate-pixels/predictions.jsonl").read_text()
    assert "3385593926_d3e9c21170" in predictions
    assert "(as published)" in capsys.readouterr().out
