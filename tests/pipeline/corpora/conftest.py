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


# A hexadecimal id, names that end in letters of ".jpg" and ".wav", and the published name with a number behind.
FLICKR_IMAGES = {
    "1000268201_693b08cb0e.jpg": "train",
    "calf_wav.jpg": "train",
    "2258277193_586949ec62.jpg": "val",
    "3385593926_d3e9c21170.jpg": "test",
}


@pytest.fixture
def flickr8k(tmp_path: Path) -> Path:
    """Four images with five recordings each, official splits, a recording of zeros and one that is no wav file."""
    root = tmp_path / "flickr8k"
    captions, speakers, tokens = [], [], ["2258277193_586949ec62.jpg.1#0\tA text of no image ."]
    for number, name in enumerate(FLICKR_IMAGES):
        write_picture(root / "Flicker8k_Dataset" / name, number)
        for index in range(5):
            wav = f"{name[:-4]}_{index}.wav"
            write_tone(root / "flickr_audio/wavs" / wav, seed=10 * number + index)
            captions.append(f"{wav} {name} #{index}")
            speakers.append(f"{wav} {number + 1}")
            tokens.append(f"{name}#{index}\tA child , number {index} .")
    write_wav(root / "flickr_audio/wavs/calf_wav_4.wav", np.zeros(8000, np.float32), 16000)
    captions.append("calf_wav_5.txt calf_wav.jpg #5")
    write_picture(root / "Flicker8k_Dataset/unsplit.jpg", 9)
    (root / "flickr_audio/wav2capt.txt").write_text("\n".join(captions) + "\n")
    (root / "flickr_audio/wav2spk.txt").write_text("\n".join(speakers) + "\n")
    (root / "Flickr8k_text").mkdir()
    (root / "Flickr8k_text/Flickr8k.token.txt").write_text("\n".join(tokens) + "\n")
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        listed = [image for image, where in FLICKR_IMAGES.items() if where == split]
        (root / f"Flickr8k_text/Flickr_8k.{name}Images.txt").write_text("\n".join(listed) + "\n")
    return root


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Three images, one of them with two captions, in the JSON layout with base paths of another machine."""
    root = tmp_path / "places"
    data: dict[str, list[dict[str, str]]] = {"train": [], "val": []}
    for number, (split, image) in enumerate(
        [
            ("train", "s/sauna/gsun_1.jpg"),
            ("train", "s/sauna/gsun_1.jpg"),
            ("train", "b/beach/gsun_1.jpg"),
            ("val", "a/x.jpg"),
        ]
    ):
        wav = f"wavs/{number}/utterance_{number}.wav"
        write_tone(root / wav, seed=number)
        write_picture(root / "images" / image, number % 2)
        entry = {"wav": wav, "image": image, "uttid": f"A1B2-{number}", "speaker": f"places_{number}"}
        data[split].append({**entry, "asr_text": "there is a sauna"})
    for split, entries in data.items():
        path = root / f"metadata/{split}.json"
        path.parent.mkdir(exist_ok=True)
        base = {"image_base_path": "/data/vision/torralba/images256/", "audio_base_path": "/data/sls/placesaudio"}
        path.write_text(json.dumps({**base, "data": entries}))
    return root
