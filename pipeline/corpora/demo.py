"""Writes the demo corpus: a miniature SpokenCOCO, drawn and synthesised, in the published layouts.

    dataset_coco.json                            Karpathy's splits: train, restval, val, test, test_novel
    annotations/captions_{train,val}2014.json    COCO captions
    {train,val}2014/COCO_{train,val}2014_<12 digits>.jpg
    SpokenCOCO/SpokenCOCO_{train,val}.json       upper-case texts, speakers, utterance ids, wav paths
    SpokenCOCO/wavs/{train,val}/<n>/<uttid>.wav  16 kHz, 16 bits
    SpokenCOCO/speakers.json                     speaker -> espeak voice (not in the original)
    SpokenCOCO/alignments.jsonl                  id, [[first sample, phoneme], ...] (not in the original)
    demo.json                                    counts, and a digest over all files

So the reader that is tried on it is the one for the real corpus. As there, val, test, restval and
test_novel come from val2014. Every image has a random generator of its own, so the bytes do not depend on
the number of workers.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from pipeline.corpora.world import draw, espeak, scenes
from pipeline.errors import InputError
from pipeline.files import sha256_file, write_json, write_jsonl
from pipeline.media import write_wav

SAMPLE_RATE = 16000
SPLITS = ("train", "restval", "val", "test", "test_novel")
CHUNK_IMAGES = 16
_FOLDER_UTTERANCES = 1000  # utterances in one of the numbered folders of wavs/


@dataclass(frozen=True)
class DemoSize:
    """How much to make. Rate is in words a minute, image_size in pixels."""

    num_images: dict[str, int]
    captions_per_train_image: int
    captions_per_test_image: int
    image_size: int
    voices: tuple[str, ...]
    rate: int
    seed: int


@dataclass(frozen=True)
class _Plan:
    """One image to make; ``first_caption`` numbers its captions over the corpus."""

    split: str
    index: int
    image_id: int
    first_caption: int
    num_captions: int

    @property
    def part(self) -> str:
        return "train" if self.split == "train" else "val"

    @property
    def filename(self) -> str:
        return f"COCO_{self.part}2014_{self.image_id:012d}.jpg"


@dataclass(frozen=True)
class _Utterance:
    """One spoken caption made; ``text`` in lower case, ``phonemes`` as (first sample, name)."""

    id: str
    caption_id: int
    wav: str
    text: str
    speaker: str
    phonemes: tuple[tuple[int, str], ...]


def speaker_of(voice: str) -> str:
    """The speaker name of an espeak voice: letters, digits and underscores, as utterance ids need."""
    return "espeak_" + re.sub(r"[^A-Za-z0-9]+", "_", voice)


def write_demo(out: Path, size: DemoSize, num_workers: int) -> dict[str, Any]:
    """Make the corpus in ``out``, replacing what is there when all is written. Returns the note, demo.json.

    Raises InputError for a split or voice that does not exist and for more captions than there are
    paraphrases.
    """
    _check(size)
    building = out.with_name(f".{out.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    plans = list(_plan(size))
    chunks = [plans[start : start + CHUNK_IMAGES] for start in range(0, len(plans), CHUNK_IMAGES)]
    # Processes, not threads: espeak-ng keeps its state in globals.
    jobs = Parallel(n_jobs=max(1, min(num_workers, len(chunks))), backend="loky", return_as="generator")
    results = jobs(delayed(_make_chunk)(building, chunk, size) for chunk in chunks)
    progress = tqdm(results, total=len(chunks), desc="demo", unit="chunk", disable=None)
    made = [utterances for chunk in progress for utterances in chunk]
    _write_lists(building, plans, made, size)
    note = _note(building, plans, made, size)
    write_json(building / "demo.json", note)
    if out.exists():
        shutil.rmtree(out)
    building.rename(out)
    return note


def _check(size: DemoSize) -> None:
    unknown = sorted(set(size.num_images) - set(SPLITS))
    if unknown:
        raise InputError(f"the demo world has no split {unknown[0]!r}; there are {', '.join(SPLITS)}")
    paraphrases = len(scenes.captions(scenes.sample_scene(np.random.default_rng(0), "train")))
    for count in (size.captions_per_train_image, size.captions_per_test_image):
        if not 1 <= count <= paraphrases:
            raise InputError(f"a demo image has 1 to {paraphrases} captions, not {count}")
    speakers = {speaker_of(voice) for voice in size.voices}
    if not size.voices or len(speakers) < len(size.voices):
        raise InputError(f"the demo needs at least one voice and none twice, not {list(size.voices)}")
    for voice in size.voices:
        espeak.synthesize("one", voice, size.rate)  # an unknown voice is an error now, not in a worker


def _plan(size: DemoSize) -> Iterator[_Plan]:
    image_id, caption_id = 1, 1
    for split in SPLITS:
        # restval is training material as well: it has as many captions as train.
        trained = split in ("train", "restval")
        count = size.captions_per_train_image if trained else size.captions_per_test_image
        for index in range(size.num_images.get(split, 0)):
            yield _Plan(split, index, image_id, caption_id, count)
            image_id, caption_id = image_id + 1, caption_id + count


def _make_chunk(out: Path, plans: Sequence[_Plan], size: DemoSize) -> list[list[_Utterance]]:
    return [_make_image(out, plan, size) for plan in plans]


def _make_image(out: Path, plan: _Plan, size: DemoSize) -> list[_Utterance]:
    """Draw one scene and speak its captions, each by a voice drawn at random (none twice while they last)."""
    rng = np.random.default_rng([size.seed, SPLITS.index(plan.split), plan.index])
    scene = scenes.sample_scene(rng, "train" if plan.split == "restval" else plan.split)
    path = out / f"{plan.part}2014" / plan.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    draw.render(scene, rng, size.image_size).save(path, "JPEG", quality=92)
    texts = scenes.captions(scene)
    chosen = sorted(int(number) for number in rng.permutation(len(texts))[: plan.num_captions])
    order = [size.voices[int(number)] for number in rng.permutation(len(size.voices))]
    return [
        _speak(out, plan, plan.first_caption + place, texts[number], order[place % len(order)], size.rate)
        for place, number in enumerate(chosen)
    ]


def _speak(out: Path, plan: _Plan, caption_id: int, text: str, voice: str, rate: int) -> _Utterance:
    speech = espeak.synthesize(text, voice, rate, sample_rate=SAMPLE_RATE)
    speaker = speaker_of(voice)
    # As in the original: <speaker>-<30 letters and digits of an assignment>_<image>_<caption>.
    assignment = hashlib.sha256(f"{speaker} {caption_id // 50}".encode()).hexdigest()[:30].upper()
    name = f"{speaker}-{assignment}_{plan.image_id}_{caption_id}"
    wav = f"wavs/{plan.part}/{caption_id // _FOLDER_UTTERANCES}/{name}.wav"
    write_wav(out / "SpokenCOCO" / wav, speech.waveform, SAMPLE_RATE)
    return _Utterance(name, caption_id, wav, text, speaker, tuple(speech.phonemes))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _write_lists(out: Path, plans: Sequence[_Plan], made: Sequence[Sequence[_Utterance]], size: DemoSize) -> None:
    """The JSON files of the three layouts, the voices and the alignments."""
    both = list(zip(plans, made, strict=True))
    for part in ("train", "val"):
        here = [(plan, utterances) for plan, utterances in both if plan.part == part]
        write_json(out / f"SpokenCOCO/SpokenCOCO_{part}.json", {"data": [_spoken(*pair) for pair in here]})
        write_json(out / f"annotations/captions_{part}2014.json", _annotations(here, size.image_size))
    karpathy = [_karpathy(number, plan, utterances) for number, (plan, utterances) in enumerate(both)]
    write_json(out / "dataset_coco.json", {"dataset": "coco", "images": karpathy})
    write_json(out / "SpokenCOCO/speakers.json", {speaker_of(voice): voice for voice in size.voices})
    utterances = sorted((one for row in made for one in row), key=lambda one: one.id)
    alignments = ({"id": one.id, "phonemes": [list(pair) for pair in one.phonemes]} for one in utterances)
    write_jsonl(out / "SpokenCOCO/alignments.jsonl", alignments)


def _spoken(plan: _Plan, utterances: Sequence[_Utterance]) -> dict[str, Any]:
    captions = [
        {"text": one.text.upper(), "speaker": one.speaker, "uttid": one.id, "wav": one.wav} for one in utterances
    ]
    return {"image": f"{plan.part}2014/{plan.filename}", "captions": captions}


def _annotations(here: Sequence[tuple[_Plan, Sequence[_Utterance]]], side: int) -> dict[str, Any]:
    images = [{"id": plan.image_id, "file_name": plan.filename, "height": side, "width": side} for plan, _ in here]
    annotations = [
        {"image_id": plan.image_id, "id": one.caption_id, "caption": _sentence(one.text)}
        for plan, utterances in here
        for one in utterances
    ]
    return {"info": {"description": "drawn demo world"}, "images": images, "annotations": annotations}


def _karpathy(number: int, plan: _Plan, utterances: Sequence[_Utterance]) -> dict[str, Any]:
    sentences = [
        {
            "imgid": number,
            "raw": _sentence(one.text),
            "sentid": one.caption_id,
            "tokens": one.text.split(),
        }
        for one in utterances
    ]
    return {
        "cocoid": plan.image_id,
        "filename": plan.filename,
        "filepath": f"{plan.part}2014",
        "imgid": number,
        "sentences": sentences,
        "sentids": [one.caption_id for one in utterances],
        "split": plan.split,
    }


def _note(out: Path, plans: Sequence[_Plan], made: Sequence[Sequence[_Utterance]], size: DemoSize) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(out).as_posix()} {sha256_file(path)}\n".encode())
    return {
        "images": {split: sum(plan.split == split for plan in plans) for split in SPLITS},
        "made": True,
        "seed": size.seed,
        "sha256": digest.hexdigest(),
        "utterances": sum(len(row) for row in made),
        "voices": list(size.voices),
    }
