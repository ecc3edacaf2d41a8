"""What HuBERT buys over MFCC: other voices' units, spoken again in one voice, and how well they are understood.

    python -m benchmarks.voices            # K = 200; about ten minutes on two cores
    python -m benchmarks.voices --small

Reads the demo's corpus (`im2speech demo`, `im2speech manifest`). For each kind of features it fits a codebook, trains
the mel vocoder on one speaker's units, and speaks the validation split's units of every speaker in that voice. Two
recognisers listen. It also prints how much the units of one sentence differ between two voices (UER), over sentences
that it has synthesised itself.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks._common import VOICES
from pipeline.captioner.training import edit_distance
from pipeline.corpora.world.espeak import synthesize
from pipeline.evaluation.metrics import word_errors
from pipeline.evaluation.recogniser import RecogniserSettings, make_recogniser
from pipeline.evaluation.text import normalise
from pipeline.files import read_jsonl
from pipeline.manifest import Caption, read_split
from pipeline.media import read_audio
from pipeline.speech.hubert import BUNDLED, SpeechEncoder
from pipeline.speech.kmeans import Codebook, fit_kmeans
from pipeline.speech.mel_vocoder import MelVocoderConfig
from pipeline.speech.mfcc import mfcc
from pipeline.speech.unit_quality import frame_phonemes, unit_quality
from pipeline.speech.vocoder import Vocoder, VocoderInfo
from pipeline.speech.vocoder_crops import make_example
from pipeline.speech.vocoder_training import TrainingSettings, train_vocoder
from pipeline.tokens.parts import deduplicate

Waveform = npt.NDArray[np.float32]
Features = Callable[[Waveform], npt.NDArray[np.float32]]


def main() -> None:
    """Measure and print one JSON object a kind of features."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--root", type=Path, default=Path("data/demo"))
    found.add_argument("--manifests", type=Path, default=Path("manifests"))
    found.add_argument("--speaker", default="espeak_en_us", help="whose voice speaks")
    found.add_argument("--encoder", type=Path, action="append", help="HuBERT folders (default: the bundled one)")
    found.add_argument("--layer", type=int, default=3)
    found.add_argument("--num-clusters", type=int, default=200)
    found.add_argument("--small", action="store_true", help="K = 50, 60 utterances, 60 steps: shows that it runs")
    options = found.parse_args()
    kinds: dict[str, Features] = {"mfcc": mfcc}
    for folder in options.encoder or [BUNDLED]:
        encoder = SpeechEncoder(folder, options.layer)
        kinds[f"{folder.name} layer {options.layer}"] = partial(encoded, encoder)
    for name, features in kinds.items():
        print(json.dumps({"features": name, **measure(features, options)}), flush=True)


def encoded(encoder: SpeechEncoder, waveform: Waveform) -> npt.NDArray[np.float32]:
    """Features of one recording, float32 [num_frames, dim]."""
    return encoder.encode([waveform])[0].numpy()


def measure(features: Features, options: argparse.Namespace) -> dict[str, float]:
    """Figures of one kind of features, in per cent but PNMI."""
    num_clusters, limit, steps = (50, 60, 60) if options.small else (options.num_clusters, 1200, 300)
    train, val = (captions(options.manifests, split) for split in ("train", "val"))

    def read(caption: Caption) -> Waveform:
        return read_audio(options.root / caption.audio, 16_000)

    sample = np.random.default_rng(0).permutation(len(train))[: min(500, limit)]
    codebook = fit_kmeans(np.concatenate([features(read(train[i])) for i in sample]), num_clusters, seed=0)
    own = [caption for caption in train if caption.speaker == options.speaker][:limit]
    examples = []
    for caption in own:
        waveform = read(caption)
        examples.append(make_example(*deduplicate(codebook.assign(features(waveform))), waveform, 320))
    config = MelVocoderConfig(num_units=num_clusters)
    network = train_vocoder(examples, config, TrainingSettings(steps=steps))
    vocoder = Vocoder(network, VocoderInfo("mel", num_clusters, 16_000, 320, "", options.speaker, config.to_dict()))
    val = val[: 40 if options.small else None]
    units = [codebook.assign(features(read(caption))) for caption in val]
    spoken = vocoder.synthesize([deduplicate(sequence)[0] for sequence in units])
    texts = [normalise(caption.text) for caption in train]
    figures: dict[str, float] = {}
    others = [i for i, caption in enumerate(val) if caption.speaker != options.speaker]
    for ear in ("pocketsphinx", "ctc"):
        heard = make_recogniser(RecogniserSettings(ear), texts).transcribe(spoken)
        for group, chosen in (("all", list(range(len(val)))), ("other_voices", others)):
            errors = word_errors([heard[i] for i in chosen], [[normalise(val[i].text)] for i in chosen])
            figures[f"wer_{ear}_{group}"] = round(errors.value(), 2)
    figures["pnmi"] = round(phoneme_information(options.root, val, units), 3)
    figures["uer_between_voices"] = round(100 * between_voices(features, codebook, texts), 1)
    return figures


def captions(manifests: Path, split: str) -> list[Caption]:
    """All captions of a split."""
    return [caption for row in read_split(manifests, split) for caption in row.captions]


def phoneme_information(root: Path, val: list[Caption], units: list[npt.NDArray[np.int64]]) -> float:
    """PNMI of the units of `val` over the corpus's alignments."""
    aligned = {row["id"]: row["phonemes"] for row in read_jsonl(root / "SpokenCOCO" / "alignments.jsonl")}
    names = [frame_phonemes(aligned[c.id], len(sequence)) for c, sequence in zip(val, units, strict=True)]
    return unit_quality(np.concatenate(units), [name for several in names for name in several])["pnmi"]


def between_voices(features: Features, codebook: Codebook, texts: list[str], number: int = 40) -> float:
    """Edit rate of deduplicated units between the first voice and each other one, of the same sentences."""
    rates = []
    for number_of_text in range(0, len(texts), max(1, len(texts) // number)):
        sequences = [
            deduplicate(codebook.assign(features(synthesize(texts[number_of_text], voice).waveform)))[0].tolist()
            for voice in VOICES
        ]
        rates += [edit_distance(other, sequences[0]) / len(sequences[0]) for other in sequences[1:]]
    return float(np.mean(rates))


if __name__ == "__main__":
    main()
