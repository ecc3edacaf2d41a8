"""Adversarial training of the unit HiFi-GAN: its losses by hand, a few steps, an interruption, two voices."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_full_backward_hook

from pipeline.arithmetic import Precision
from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.speech.hifigan import small_config
from pipeline.speech.hifigan_training import (
    AdversarialSettings,
    AdversarialTraining,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from pipeline.speech.vocoder import Vocoder, VocoderInfo, load_vocoder, save_vocoder
from pipeline.speech.vocoder_crops import CropSampler, Example, make_example
from pipeline.speech.vocoder_training import TrainingSettings, train_vocoder

NOTES = (220.0, 330.0, 440.0, 660.0)
TINY = AdversarialSettings(channels=128)


def _melodies(count: int, speaker: int = 0, octave: float = 1.0) -> list[Example]:
    rng = np.random.default_rng(speaker)
    examples = []
    for _ in range(count):
        units = np.cumsum(rng.integers(1, len(NOTES), size=8)) % len(NOTES)
        durations = 4 + units
        pitch = np.repeat(octave * np.array(NOTES)[units], durations * 320)
        waveform = 0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000)
        examples.append(make_example(units, durations, waveform.astype(np.float32), 320, speaker))
    return examples


def _settings(steps: int, **fields: object) -> TrainingSettings:
    adversarial = AdversarialSettings(channels=128, **fields)  # type: ignore[arg-type]
    return TrainingSettings(steps=steps, batch_size=2, crop_frames=8, lr=1e-3, adversarial=adversarial)


def _training(precision: str = "fp32", start: int = 0) -> tuple[AdversarialTraining, CropSampler]:
    torch.manual_seed(0)
    settings = AdversarialSettings(channels=128, precision=precision, start=start)  # type: ignore[arg-type]
    training = AdversarialTraining(
        small_config(4, 32, 320, 16000), settings, rate=2e-3, weight_decay=0.01, steps_per_epoch=3, device="cpu"
    )
    return training, CropSampler(_melodies(6), batch_size=2, crop_frames=8, hop=320, context=0, seed=0)


def test_losses_are_the_papers_formulas() -> None:
    real = [(torch.tensor([[1.0, 0.5]]), [torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0]])])]
    fake = [(torch.tensor([[0.0, 0.5]]), [torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0]])])]
    # Real (0 + 0.25) / 2, fake (0 + 0.25) / 2; against real scores of 1: (1 + 0.25) / 2; (1 + 3) / 2 + 3.
    assert float(discriminator_loss(real, fake)) == pytest.approx(0.25)
    assert float(generator_loss(fake)) == pytest.approx(0.625)
    assert float(feature_loss(real, fake)) == pytest.approx(5.0)
    # Summed over discriminators, not averaged.
    assert float(discriminator_loss(real * 3, fake * 3)) == pytest.approx(0.75)
    assert float(feature_loss(real * 3, fake * 3)) == pytest.approx(15.0)


def test_the_generator_follows_the_gradient_of_the_weighted_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    training, sampler = _training()
    crops = sampler.next()
    training.network.dur_predictor.dropout = 0.0  # type: ignore[union-attr]
    totals: dict[str, Tensor] = {}
    monkeypatch.setattr(training, "_update", lambda name, loss: totals.__setitem__(name, loss))
    losses = training.step(crops, 0)
    assert set(losses) == {"discriminator", "adversarial", "feature", "mel", "duration"}
    expected = 45 * losses["mel"] + 2 * losses["feature"] + losses["adversarial"] + losses["duration"]
    torch.testing.assert_close(totals["generator"], expected)
    torch.testing.assert_close(totals["discriminators"], losses["discriminator"])
    whole = crops.whole
    predicted = training.network.log_durations(crops.units)
    errors = (predicted - torch.log(crops.durations + 1.0))[whole].square()
    torch.testing.assert_close(losses["duration"], errors.mean())


def test_each_side_learns_in_its_own_step_and_the_rate_falls_by_epochs() -> None:
    training, sampler = _training(start=2)
    before = {name: value.clone() for name, value in training.discriminators.state_dict().items()}
    for step in range(2):
        assert set(training.step(sampler.next(), step)) == {"mel", "duration"}
    for name, value in training.discriminators.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert "adversarial" in training.step(sampler.next(), 2)
    changed = [n for n, p in training.discriminators.named_parameters() if not torch.equal(p, before[n])]
    assert len(changed) == len(before) - 16  # all but the 8 spectral layers' u and v
    for step, rate in ((0, 2e-3), (2, 2e-3), (3, 2e-3 * 0.999), (8, 2e-3 * 0.999**2)):
        training.step(sampler.next(), step)
        assert training.optimizers["generator"].param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12)


def test_a_few_steps_lower_the_mel_error() -> None:
    losses: list[dict[str, float]] = []
    train_vocoder(_melodies(6), small_config(4, 32, 320, 16000), _settings(20), log=losses.append, show_progress=False)
    mel = [record["mel"] for record in losses]
    assert np.mean(mel[-3:]) < 0.85 * mel[0]
    assert all(np.isfinite(list(record.values())).all() for record in losses)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_first_losses(precision: str) -> None:
    found = []
    for chosen in ("fp32", precision):
        training, sampler = _training(chosen)
        found.append({name: float(value.detach()) for name, value in training.step(sampler.next(), 0).items()})
        assert all(parameter.dtype == torch.float32 for parameter in training.parameters())
    # Not the losses after the discriminators' first step, which fp16 passes over while its scale is too high.
    for name in ("discriminator", "mel", "duration"):
        value = found[0][name]
        assert found[1][name] == pytest.approx(value, rel=0.1, abs=0.02), name
        # An untrained generator is too quiet for its mel to differ: both are the floor of the logarithm.
        assert name == "mel" or found[1][name] != value, name


@pytest.mark.parametrize("adversarial", [TINY, None])
def test_a_loss_that_is_no_number_ends_the_run(adversarial: AdversarialSettings | None) -> None:
    config, examples = small_config(4, 32, 320, 16000), _melodies(3)
    settings = TrainingSettings(steps=4, batch_size=2, crop_frames=8, adversarial=adversarial)
    start = train_vocoder(examples, config, replace(settings, steps=1), show_progress=False).state_dict()
    start["conv_post.bias"] = start["conv_post.bias"] + float("nan")
    with pytest.raises(InputError, match=r"not a number at step 0 \(.*mel.*\); a lower lr"):
        train_vocoder(examples, config, settings, start=start, show_progress=False)


@pytest.mark.gpu
@pytest.mark.parametrize("adversarial", [TINY, None])
def test_gradients_on_a_gpu_are_fp32_too(cuda: str, adversarial: AdversarialSettings | None) -> None:
    """Not TF32, which PyTorch allows in convolutions wherever nobody forbids it."""
    settings, seen = TrainingSettings(steps=1, batch_size=2, crop_frames=8, adversarial=adversarial), set[bool]()
    hook = register_module_full_backward_hook(lambda *_: seen.add(torch.backends.cudnn.allow_tf32))
    try:
        train_vocoder(_melodies(3), small_config(4, 32, 320, 16000), settings, device=cuda, show_progress=False)
    finally:
        hook.remove()
    assert seen == {False} and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, precision: Precision) -> None:
    adversarial = AdversarialSettings(channels=128, start=1, precision=precision)
    settings = TrainingSettings(steps=6, batch_size=2, crop_frames=8, adversarial=adversarial, checkpoint_every=2)
    config, examples = small_config(4, 32, 320, 16000), _melodies(5)
    unbroken = train_vocoder(examples, config, settings, show_progress=False)

    def dies(record: dict[str, float]) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_vocoder(examples, config, settings, checkpoint=tmp_path, log=dies, show_progress=False)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-2.safetensors"]
    scaler = read_json(tmp_path / "state.json")["facts"]["scaler"]
    if precision == "fp16":  # its first scale is too high, so that a run that went back to it would pass over steps
        assert scaler["scale"] < torch.amp.GradScaler("cpu").get_scale()
    steps: list[int] = []
    resumed = train_vocoder(
        *(examples, config, settings),
        checkpoint=tmp_path,
        log=lambda record: steps.append(record["step"]),
        show_progress=False,
    )
    assert steps[0] == 2
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    other = TrainingSettings(steps=7, batch_size=2, adversarial=TINY)
    with pytest.raises(InputError, match="other training settings; remove the folder"):
        train_vocoder(examples, config, other, checkpoint=tmp_path, show_progress=False)


def test_each_speaker_has_a_voice_by_name_and_the_first_is_the_default(tmp_path: Path) -> None:
    config = small_config(4, 32, 320, 16000, ["ann", "bob"])
    assert (config.multispkr, config.num_speakers, config.model_in_dim) == ("_", 2, 256)
    examples = [*_melodies(3), *_melodies(3, speaker=1, octave=0.5)]
    network = train_vocoder(examples, config, _settings(2), show_progress=False)
    save_vocoder(tmp_path, Vocoder(network, VocoderInfo("hifigan", 4, 16000, 320, "", "ann", config.to_dict())))
    vocoder = load_vocoder(tmp_path)
    assert vocoder.speakers == ("ann", "bob")
    units, durations = [[0, 2, 1]], [[4, 4, 4]]
    ann, bob, second, default = (
        vocoder.synthesize(units, durations, speaker=speaker)[0] for speaker in ("ann", "bob", 1, None)
    )
    assert np.array_equal(ann, default) and np.array_equal(bob, second) and not np.array_equal(ann, bob)
    with pytest.raises(InputError, match="no speaker 'eve'; it knows ann, bob"):
        vocoder.synthesize(units, speaker="eve")
    with pytest.raises(InputError, match="no speaker 2; it knows 0 to 1"):
        vocoder.synthesize(units, speaker=2)


def test_two_voices_are_told_apart_by_what_they_learn() -> None:
    """The gradient of one speaker's crops reaches that speaker's embedding only."""
    config = small_config(4, 32, 320, 16000, ["ann", "bob"])
    torch.manual_seed(0)
    training = AdversarialTraining(config, TINY, rate=1e-3, weight_decay=0.0, steps_per_epoch=1, device="cpu")
    before = training.network.spkr.weight.detach().clone()  # type: ignore[union-attr]
    sampler = CropSampler(_melodies(2, speaker=1), batch_size=2, crop_frames=8, hop=320, context=0, seed=0)
    training.step(sampler.next(), 0)
    after = training.network.spkr.weight.detach()  # type: ignore[union-attr]
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
