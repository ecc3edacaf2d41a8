"""The mel front end and the default vocoder's network."""

import numpy as np
import pytest
import torch

from pipeline.speech.mel import LogMel, MelConfig, log_mel_to_waveform
from pipeline.speech.mel_vocoder import MelVocoder, MelVocoderConfig, durations_from_log, expand_runs


def _tone(seconds: float = 0.8) -> np.ndarray:
    time = np.arange(int(seconds * 16000)) / 16000
    vibrato = 220 * time + 3 * np.sin(2 * np.pi * 5 * time)
    return (0.5 * np.sin(2 * np.pi * vibrato) * np.hanning(len(time))).astype(np.float32)


def _network() -> MelVocoder:
    torch.manual_seed(0)
    return MelVocoder(MelVocoderConfig(num_units=20, channels=32)).eval()


def test_log_mel_is_librosas() -> None:
    import librosa

    waveform = _tone()
    config = MelConfig()
    theirs = librosa.feature.melspectrogram(
        y=waveform, sr=16000, n_fft=config.n_fft, hop_length=config.hop, n_mels=80, power=1.0
    )
    theirs = np.log(np.maximum(theirs, config.floor)).T
    ours = LogMel(config)(torch.from_numpy(waveform)[None])[0].numpy()
    assert ours.shape == (len(waveform) // config.hop, 80)
    np.testing.assert_allclose(ours, theirs[: len(ours)], atol=1e-2)


def test_log_mel_of_a_crop_with_context_is_a_crop_of_the_log_mel() -> None:
    analyse = LogMel(MelConfig())
    waveform = torch.from_numpy(_tone())[None]
    whole = analyse(waveform)
    crop = analyse(waveform[:, 3200 - 512 : 6400 + 512], padded=True)
    torch.testing.assert_close(crop, whole[:, 20:40], atol=1e-4, rtol=1e-4)


def test_griffin_lim_returns_the_spectrum_and_repeats_itself() -> None:
    config = MelConfig()
    analyse = LogMel(config)
    log_mel = analyse(torch.from_numpy(_tone())[None])[0].numpy()
    waveform = log_mel_to_waveform(log_mel, config, num_iterations=16, seed=3)
    assert waveform.dtype == np.float32 and len(waveform) == len(log_mel) * config.hop
    again = analyse(torch.from_numpy(waveform)[None])[0].numpy()
    loud = log_mel > log_mel.max() - 4
    assert np.abs(again - log_mel)[loud].mean() < 0.3
    np.testing.assert_array_equal(waveform, log_mel_to_waveform(log_mel, config, num_iterations=16, seed=3))
    other = log_mel_to_waveform(log_mel, config, num_iterations=16, seed=4)
    assert not np.array_equal(waveform, other)
    assert len(log_mel_to_waveform(log_mel[:0], config, num_iterations=2)) == 0


def test_expand_runs_lays_out_frames() -> None:
    runs, place, mask = expand_runs(torch.tensor([[2, 1, 3], [1, 1, 0]]))
    assert runs[0].tolist() == [0, 0, 1, 2, 2, 2]
    assert runs[1, :2].tolist() == [0, 1]
    assert mask.sum(1).tolist() == [6, 2]
    torch.testing.assert_close(place[0], torch.tensor([0.25, 0.75, 0.5, 1 / 6, 0.5, 5 / 6]))


def test_durations_follow_fairseqs_rule() -> None:
    predicted = torch.log1p(torch.tensor([0.0, 0.3, 1.4, 2.6, 10.0]))
    assert durations_from_log(predicted).tolist() == [1, 1, 1, 3, 10]


@pytest.mark.parametrize("give_durations", [False, True])
def test_a_sequence_gives_the_same_mel_alone_and_in_a_batch(give_durations: bool) -> None:
    network = _network()
    generator = torch.Generator().manual_seed(1)
    units = [torch.randint(0, 20, (length,), generator=generator) for length in (1, 7, 30, 3)]
    durations = [torch.randint(1, 9, (len(u),), generator=generator) for u in units]
    together = network.log_mels(units, durations if give_durations else None)
    for index, sequence in enumerate(units):
        alone = network.log_mels([sequence], [durations[index]] if give_durations else None)[0]
        assert together[index].shape == alone.shape
        torch.testing.assert_close(together[index], alone, atol=1e-5, rtol=1e-5)
        if give_durations:
            assert len(alone) == int(durations[index].sum()) * network.config.frames_per_unit


def test_config_survives_json() -> None:
    config = MelVocoderConfig(num_units=50, mel=MelConfig(num_mels=40))
    assert MelVocoderConfig.from_dict(config.to_dict()) == config
