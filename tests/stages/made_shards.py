"""Token shards of a small synthetic corpus, said to be of the bundled image tokenizer and of a codebook of 50 units."""

from pathlib import Path

import numpy as np

from pipeline.files import read_json, write_json
from pipeline.speech.kmeans import Codebook
from pipeline.tokens import carried
from stages import shards
from stages._cli import StageContext
from stages._settings import Settings
from tests.pipeline.tokens.synthetic import write_corpus

BUNDLED = Path(__file__).resolve().parents[2] / "pipeline" / "bundled" / "vit_vqgan"


def context(root: Path, stage: str = "shards") -> StageContext:
    return StageContext(stage, Settings(1, 1, "cpu", "loky", root / "scratch", root / "logs"))


def make_shards(root: Path, *, include_pixels: bool = False) -> Path:
    """Write corpus, parts and shards below `root`; gives the folder of shards. Tokens are 4 x 4."""
    write_corpus(root)
    codebook = Codebook(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), {"layer": 3})
    codebook.save(root / "codebook.safetensors")
    about = read_json(root / "units" / "units.json")
    write_json(root / "units" / "units.json", {**about, "codebook_fingerprint": codebook.fingerprint})
    codes, fingerprint = carried.read_image_codebook(BUNDLED / "model.safetensors")
    tokenizer = {"tokenizer_fingerprint": fingerprint, "vocab": len(codes), "grid": [4, 4]}
    write_json(root / "images" / "tokenizer.json", tokenizer)
    shards.run(
        shards.Params(include_pixels=include_pixels),
        context(root),
        root=root / "corpus",
        manifests=root / "manifests",
        codebook=root / "codebook.safetensors",
        vqgan=BUNDLED,
        units=root / "units",
        images=root / "images",
        out=root / "shards",
    )
    return root / "shards"
