"""Training, saving, loading and speaking, for both kinds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.speech.hifigan import HiFiGANConfig, small_config
from pipeline.speech.mel_vocoder import MelVocoderConfig
from pipeline.speech.vocoder import Vocoder, VocoderInfo, load_vocoder, save_vocoder
from pipeline.speech.vocoder_crops import Example, make_example
from pipeline.speech.vocoder_training import TrainingSettings, measure_vocoder, train_vocoder

NOTES = (220.0, 330.0, 440.0, 660.0)


def _examples(count: int, seed: int = 0) -> list[Example]:
    """Melodies: unit k is note k, so that a vocoder has something true to learn."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        steps = rng.integers(1, len(NOTES), size=12)
        units = np.cumsum(steps) % len(NOTES)
        durations = 8 + 2 * units
        pitch = np.repeat(np.array(NOTES)[units], durations * 320)
        waveform = 0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000)
        examples.append(make_example(units, durations, waveform.astype(np.float32), 320))
    return examples


def _config(kind: str) -> MelVocoderConfig | HiFiGANConfig:
    if kind == "mel":
        return MelVocoderConfig(num_units=4, channels=32, griffin_lim_iterations=8)
    return small_config(4, 32, 320, 16000)


def _vocoder(kind: str, seed: int = 0) -> Vocoder:
    torch.manual_seed(seed)
    settings = TrainingSettings(steps=2, batch_size=2, crop_frames=8, seed=seed)
    config = _config(kind)
    network = train_vocoder(_examples(2), config, settings, show_progress=False)
    info = VocoderInfo(kind, 4, 16000, 320, "0123456789abcdef", "flute", config.to_dict())
    return Vocoder(network, info)


def test_the_mel_vocoder_learns_notes_and_durations() -> None:
    settings = TrainingSettings(steps=200, batch_size=8, crop_frames=40)
    network = train_vocoder(_examples(12), _config("mel"), settings, show_progress=False)
    untrained = train_vocoder(
        _examples(12), _config("mel"), TrainingSettings(steps=1, batch_size=2), show_progress=False
    )
    held_out = _examples(4, seed=5)
    before, after = measure_vocoder(untrained, held_out), measure_vocoder(network, held_out)
    assert after["mel_error"] < 0.5 * before["mel_error"]
    assert after["duration_error"] < 0.3
    assert 0.95 < after["length_ratio"] < 1.05
    info = VocoderInfo("mel", 4, 16000, 320, "", "", {})
    spoken = Vocoder(network, info).synthesize([np.array([0, 2])], [np.array([8, 12])])[0]
    assert len(spoken) == 20 * 320
    for part, note in ((spoken[200:2360], NOTES[0]), (spoken[2760:6200], NOTES[2])):
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        assert abs(np.argmax(spectrum) * 16000 / len(part) - note) < 30


def test_the_unit_hifigan_learns() -> None:
    losses: list[dict[str, float]] = []
    settings = TrainingSettings(steps=30, batch_size=4, crop_frames=8, lr=2e-3)
    train_vocoder(_examples(4), _config("hifigan"), settings, log=losses.append, show_progress=False)
    first, last = losses[0], losses[-1]
    assert last["mel"] < 0.8 * first["mel"] and last["duration"] < first["duration"]


@pytest.mark.parametrize("kind", ["mel", "hifigan"])
def test_training_repeats_itself_and_survives_the_disk(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_vocoder(tmp_path / name, _vocoder(kind))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = load_vocoder(tmp_path / "a", units_fingerprint="0123456789abcdef", num_units=4)
    units = [np.array([1, 2, 3], np.uint16)]
    expected = _vocoder(kind).synthesize(units)[0]
    np.testing.assert_array_equal(loaded.synthesize(units)[0], expected)
    assert loaded.sample_rate == 16000 and loaded.units_fingerprint == "0123456789abcdef"


@pytest.mark.parametrize("kind", ["mel", "hifigan"])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_a_batch_speaks_as_its_members_alone(kind: str, batch_size: int | None) -> None:
    vocoder = _vocoder(kind)
    rng = np.random.default_rng(2)
    units = [rng.integers(0, 4, size=length).astype(np.uint16) for length in (5, 0, 1, 9)]
    durations = [rng.integers(1, 6, size=len(sequence)).astype(np.uint16) for sequence in units]
    done: list[int] = []
    together = vocoder.synthesize(units, durations, batch_size=batch_size, progress=done.append)
    assert sum(done) == 3
    for index, sequence in enumerate(units):
        alone = vocoder.synthesize([sequence], [durations[index]])[0]
        assert together[index].dtype == np.float32
        assert len(alone) == 320 * int(durations[index].sum())
        if batch_size == 3:  # another order of summation; Griffin-Lim carries the rounding on
            np.testing.assert_allclose(together[index], alone, atol=2e-3)
        else:
            np.testing.assert_array_equal(together[index], alone)


def test_units_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    vocoder = _vocoder("mel")
    with pytest.raises(InputError, match="holds unit 4.*units 0 to 3"):
        vocoder.synthesize([[0, 1], [4]])
    with pytest.raises(InputError, match="holds unit -1"):
        vocoder.synthesize([[-1]])
    with pytest.raises(InputError, match="whole numbers"):
        vocoder.synthesize([[0.5]])
    with pytest.raises(InputError, match="durations of sequence 0"):
        vocoder.synthesize([[0, 1]], [[1]])
    with pytest.raises(InputError, match="one voice"):
        vocoder.synthesize([[0]], speaker=1)
    save_vocoder(tmp_path, vocoder)
    with pytest.raises(InputError, match="0123456789abcdef.*feedfeedfeedfeed"):
        load_vocoder(tmp_path, units_fingerprint="feedfeedfeedfeed")
    with pytest.raises(InputError, match="4 units, but the codebook has 100"):
        load_vocoder(tmp_path, num_units=100)


def test_broken_folders_are_refused_by_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config.json: no such file"):
        load_vocoder(tmp_path)
    save_vocoder(tmp_path, _vocoder("mel"))
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"num_units": 5}, "'num_units'"),
        ({"kind": "tacotron"}, "'tacotron' is unknown"),
        ({"extra": 1}, "extra"),
        ({"model": {**config["model"], "channels": 16}}, "do not fit"),
        ({"model": {}}, "key 'model'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=message):
            load_vocoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="not readable as safetensors"):
        load_vocoder(tmp_path)


def test_units_of_another_recording_are_refused() -> None:
    with pytest.raises(InputError, match="do not belong together"):
        make_example(np.array([1, 2]), np.array([5, 5]), np.zeros(16000, np.float32), 320)
    with pytest.raises(InputError, match="do not belong together"):
        make_example(np.array([1, 2]), np.array([500, 5]), np.zeros(16000, np.float32), 320)
    short = make_example(np.array([1, 2]), np.array([5, 5]), np.ones(3000, np.float32), 320)
    assert len(short.pcm) == 3200 and short.pcm[-1] == 0
