"""Hearing a captioner while it trains: sound and pictures for the log, BLEU of the right captions, what cannot be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.evaluation.recogniser import RecogniserSettings
from pipeline.files import write_text
from pipeline.speech.mel_vocoder import MelVocoderConfig
from pipeline.speech.vocoder import Vocoder, VocoderInfo, build_network, save_vocoder
from pipeline.tokens.read import read_samples
from pipeline.tokens.sample import Sample
from stages import train
from stages._cli import StageContext
from stages._listening import Listener
from stages._settings import Settings
from stages._trackers import Files, watched
from tests.pipeline.tokens import making

FINGERPRINT = making.make_codebook().fingerprint


def _worded(sample: Sample) -> Sample:
    number = sample.key.rpartition("-")[2]
    captions = [
        replace(caption, text=f"A dog number {number} in take {place}.")
        for place, caption in enumerate(sample.captions)
    ]
    return replace(sample, captions=captions)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards with texts, and a vocoder that has learnt nothing."""
    folder = tmp_path_factory.mktemp("listening")
    shards = making.write_set(folder / "set", {"train": [3], "val": [4]})
    making.change_shard(shards / "val" / "00000.tar", _worded)
    torch.manual_seed(0)
    config = MelVocoderConfig(num_units=making.NUM_UNITS, channels=16, griffin_lim_iterations=1).to_dict()
    info = VocoderInfo("mel", making.NUM_UNITS, 16000, 320, FINGERPRINT, "ann", config)
    save_vocoder(folder / "vocoder", Vocoder(build_network("mel", config), info))
    return shards, folder / "vocoder"


def _listener(parts: tuple[Path, Path], tracker: Files, *, fingerprint: str = FINGERPRINT) -> Listener:
    return Listener(
        *(parts[0], "val", parts[1], tracker),
        num_samples=2,
        bleu_images=3,
        recogniser=RecogniserSettings("ctc"),
        units_fingerprint=fingerprint,
        device="cpu",
        num_workers=1,
    )


def test_samples_are_written_and_bleu_is_of_the_captions_of_the_same_image(
    parts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = _listener(parts, Files(tmp_path))
    samples = list(read_samples(parts[0], "val"))
    spoken = [sample.captions[0].units for sample in samples]
    assert 0 <= listener(10, spoken)["validation_bleu4"] < 50  # what the network hears of noise
    written = sorted(path.name for path in (tmp_path / "0000010").iterdir())
    assert written == [f"{sample.key.replace('/', '_')}.wav" for sample in samples[:2]]

    texts = [sample.captions[1].text.upper() for sample in samples]
    heard: list[list[str]] = []
    monkeypatch.setattr(listener._recogniser, "transcribe", lambda sounds: heard.pop()[: len(sounds)])
    heard.append(texts)
    assert listener(20, spoken)["validation_bleu4"] == pytest.approx(100)
    heard.append([texts[0], *texts[2:]])  # nothing was said of the second, so nobody hears it
    silent = [spoken[0], np.zeros(0, np.uint16), *spoken[2:]]
    assert 40 < listener(30, silent)["validation_bleu4"] < 100
    heard.append(texts[1:])
    assert listener(40, spoken)["validation_bleu4"] < 90


def test_a_voice_of_other_units_is_refused_before_the_curves_of_an_earlier_run_go(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    context = StageContext("train", Settings(1, 1, "cpu", "loky", tmp_path / "scratch", tmp_path / "logs"))
    write_text(tmp_path / "curves" / "loss.tsv", "earlier")
    hear = lambda tracker: _listener(parts, tracker, fingerprint="f" * 16)  # noqa: E731
    with pytest.raises(InputError, match=FINGERPRINT), watched("dvclive", context, tmp_path / "curves", "x", {}, hear):
        pass
    assert (tmp_path / "curves" / "loss.tsv").read_text() == "earlier"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"bleu_images": 61}, "train.bleu_images: 61 are to be heard, but train.num_validation_images"),
        ({"bleu_images": 5, "bleu_recogniser": "wav2vec2"}, "train.bleu_recogniser_model"),
    ],
)
def test_a_bleu_that_could_not_be_measured_is_refused_at_once(parts, tmp_path, params, message):
    context = StageContext("train", Settings(1, 1, "cpu", "loky", tmp_path / "scratch", tmp_path / "logs"))
    with pytest.raises(InputError, match=message):
        train.run(train.Params(**params), context, shards=parts[0], vocoder=parts[1], out=tmp_path / "out")


def test_without_a_validation_split_it_says_whose_figures_those_are(tmp_path, capsys):
    shards = making.write_set(tmp_path / "set", {"train": [2]})
    settings = Settings(1, 1, "cpu", "loky", tmp_path / "scratch", tmp_path / "logs")
    train.run(train.Params(), StageContext("train", settings, dry_run=True), shards=shards, out=tmp_path / "out")
    assert "no split val, so validation figures are of the first training images" in capsys.readouterr().out
