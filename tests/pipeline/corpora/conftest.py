"""A corpus of a few real files in SpokenCOCO's layout, with the traps of the published one."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.media import write_wav


def write_tone(path: Path, seconds: float = 0.5, seed: int = 0) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.1, int(16000 * seconds))
    write_wav(path, noise.astype(np.float32), 16000)


def write_picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def spokencoco(tmp_path: Path) -> Path:
    """Images 1, 2 (train), 3 (restval), 4 (val), 5 (test), 6 (test_novel); 5 has six captions, others two."""
    root = tmp_path / "coco"
    splits = {1: "train", 2: "train", 3: "restval", 4: "val", 5: "test", 6: "test_novel"}
    data: dict[str, list] = {"train": [], "val": []}
    karpathy = []
    for number, split in splits.items():
        part = "train" if split == "train" else "val"
        name = f"COCO_{part}2014_{number:012d}.jpg"
        write_picture(root / f"{part}2014" / name, number)
        captions = []
        for index in range(6 if number == 5 else 2):
            uttid = f"m0-HIT_{number}_{index}"
            wav = f"wavs/{part}/0/{uttid}.wav"
            write_tone(root / "SpokenCOCO" / wav, seed=10 * number + index)
            captions.append({"text": f"A DOG {index}", "speaker": "m0", "uttid": uttid, "wav": wav})
        data[part].append({"image": f"{part}2014/{name}", "captions": captions})
        karpathy.append({"filename": name, "filepath": f"{part}2014", "split": split, "sentences": []})
    for part, items in data.items():
        (root / f"SpokenCOCO/SpokenCOCO_{part}.json").write_text(json.dumps({"data": items}))
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": karpathy}))
    return root
