"""The recipe of the bundled character recogniser: espeak-ng speaks random words, a small network spells them.

Writes config.json, model.safetensors and figures.json into one folder. Half of what is spoken is drawn
from the words and short phrases of the wider drawn world in random order, half from the common words of
the CMU dictionary, in all voices, rates and pitches: the network can learn how words sound and are
spelled, but no sentence that it could complete from memory. A part is resynthesised by Griffin-Lim from
mel spectra, and features are blurred, filtered and drowned in noise, since it has to judge vocoders.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.corpora.world import scenes
from pipeline.corpora.world.espeak import VOICES, synthesize
from pipeline.evaluation.ctc import (
    ALPHABET,
    HOP,
    SAMPLE_RATE,
    CharacterCTC,
    CTCConfig,
    greedy_text,
    log_mel,
    normalise_features,
    save_ctc,
)
from pipeline.evaluation.pocketsphinx import common_words
from pipeline.files import write_json

Log = Callable[[str], None]


@dataclass(frozen=True)
class CTCRecipe:
    """What is spoken and how long is trained; the defaults made the bundled model."""

    seed: int = 0
    num_utterances: int = 9000
    num_resynthesised: int = 1500
    num_steps: int = 2400
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    num_held_out: int = 100


@dataclass(frozen=True)
class Spoken:
    """One utterance: its text and its log-mel, float16 [frames, mels]."""

    text: str
    features: npt.NDArray[np.float16]


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def world_text(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Words of the wider world in random order, or short runs cut out of its captions, joined at random."""
    if rng.random() < 0.5:
        return " ".join(_pick(rng, words) for _ in range(rng.integers(2, 13)))
    runs: list[str] = []
    for _ in range(rng.integers(2, 6)):
        caption = scenes.wide_caption(scenes.sample_wide(rng), rng).split()
        start = int(rng.integers(len(caption)))
        runs += caption[start : start + int(rng.integers(1, 5))]
    return " ".join(runs)


def wide_text(rng: np.random.Generator, words: Sequence[str], weights: npt.NDArray[np.float64]) -> str:
    """Common English words in random order, the frequent ones more often."""
    places = np.searchsorted(weights.cumsum(), rng.random(int(rng.integers(2, 9))))
    return " ".join(words[min(place, len(words) - 1)] for place in places)


def held_out_captions(number: int, seed: int) -> list[str]:
    """Captions of demo test scenes: their colour-shape pairs are in nothing that was trained on."""
    rng = np.random.default_rng([seed, 9])
    splits = ("test", "test_novel")
    return [_pick(rng, scenes.captions(scenes.sample_scene(rng, splits[i % 2]))) for i in range(number)]


def world_words() -> list[str]:
    """Every word that a caption of the wider world can hold."""
    rng = np.random.default_rng(0)
    texts = (scenes.wide_caption(scenes.sample_wide(rng), rng) for _ in range(5000))
    return sorted({word for text in texts for word in text.split()})


def speak(text: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """`text` in a random voice, rate and pitch, with up to 0.3 s of silence on either side."""
    voice = "en-us" if rng.random() < 0.25 else _pick(rng, VOICES)
    waveform = synthesize(text, voice, int(rng.integers(120, 206)), int(rng.integers(20, 81))).waveform
    before, after = rng.integers(0, int(0.3 * SAMPLE_RATE), size=2)
    return np.pad(waveform * np.float32(rng.uniform(0.3, 1.0)), (before, after))


def griffin_lim(waveform: Tensor, seed: int, num_iterations: int = 16, num_mels: int = 80) -> Tensor:
    """A copy of `waveform` that went through a mel spectrum and lost its phases, as from a simple vocoder."""
    from librosa.filters import mel

    size, window = 1024, torch.hann_window(1024)
    filters = torch.from_numpy(mel(sr=SAMPLE_RATE, n_fft=size, n_mels=num_mels))
    spectrum = torch.stft(waveform, size, 2 * HOP, window=window, return_complex=True).abs()
    magnitude = (torch.linalg.pinv(filters) @ (filters @ spectrum)).clamp(min=0.0)
    phases = torch.from_numpy(np.random.default_rng(seed).uniform(-np.pi, np.pi, magnitude.shape).astype(np.float32))
    angles = torch.polar(torch.ones_like(phases), phases)
    for _ in range(num_iterations):
        signal = torch.istft(magnitude * angles, size, 2 * HOP, window=window)
        rebuilt = torch.stft(signal, size, 2 * HOP, window=window, return_complex=True)
        angles = rebuilt / rebuilt.abs().clamp(min=1e-8)
    return torch.istft(magnitude * angles, size, 2 * HOP, window=window, length=waveform.numel())


def make_pool(texts: Sequence[str], seed: int, resynthesise: int, num_mels: int) -> list[Spoken]:
    """Speak every text; the first `resynthesise` of them come back through Griffin-Lim."""
    pool = []
    for index, text in enumerate(texts):
        waveform = torch.from_numpy(speak(text, np.random.default_rng([seed, index])))
        if index < resynthesise:
            waveform = griffin_lim(waveform, seed=index)
        pool.append(Spoken(text, log_mel(waveform, num_mels).clamp(min=-20.0).numpy().astype(np.float16)))
    return pool


def collate(items: Sequence[Spoken]) -> tuple[Tensor, Tensor]:
    """Padded log-mel float32 [batch, frames, mels] and its mask, bool [batch, frames]."""
    lengths = torch.tensor([len(item.features) for item in items])
    features = torch.zeros(len(items), int(lengths.max()), items[0].features.shape[1])
    for row, item in enumerate(items):
        features[row, : len(item.features)] = torch.from_numpy(item.features.astype(np.float32))
    return features, torch.arange(features.shape[1]) < lengths.unsqueeze(1)


def augment(features: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Coloured noise, filters and blurs on log-mel [batch, frames, mels], each on a random part of the batch."""
    batch, frames, bands = features.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    # A blur over time and bands, as the average that a small vocoder predicts.
    blurred = nn.functional.avg_pool2d(features.unsqueeze(1), (5, 3), stride=1, padding=(2, 1))[:, 0]
    features = torch.lerp(features, blurred, (uniform(batch, 1, 1) < 0.3) * uniform(batch, 1, 1))
    # A smooth random filter, and a low-pass on a fifth.
    knots = 6.0 * (uniform(batch, 1, 6) - 0.5)
    features = features + nn.functional.interpolate(knots, bands, mode="linear", align_corners=True)
    cutoff = torch.where(uniform(batch, 1) < 0.2, 30 + (bands - 30) * uniform(batch, 1), float(bands))
    features = features - 12.0 * (torch.arange(bands) >= cutoff).unsqueeze(1)
    # Noise with the statistics of a periodogram (exponential), 5 to 50 dB below the mean level.
    level = features.masked_fill(~mask.unsqueeze(-1), -20.0).exp().mean(dim=(1, 2), keepdim=True).log()
    colour = nn.functional.interpolate(4.0 * (uniform(batch, 1, 4) - 0.5), bands, mode="linear", align_corners=True)
    ratio = 1.15 + 10.4 * uniform(batch, 1, 1)
    grain = (-(uniform(batch, frames, bands).clamp(min=1e-6)).log()).clamp(min=1e-3).log()
    return torch.logaddexp(features, level + colour - ratio + grain)


def erase(features: Tensor, generator: torch.Generator) -> Tensor:
    """Blank one short stretch of time and one run of bands in each normalised utterance (SpecAugment)."""
    batch, frames, bands = features.shape

    def spans(size: int, longest: int) -> Tensor:
        start = torch.rand(batch, 1, generator=generator) * size
        length = torch.rand(batch, 1, generator=generator) * longest
        place = torch.arange(size)
        return (place >= start) & (place < start + length)

    return features.masked_fill(spans(frames, 8).unsqueeze(2) | spans(bands, 10).unsqueeze(1), 0.0)


def _targets(items: Sequence[Spoken]) -> tuple[Tensor, Tensor]:
    indices = [[ALPHABET.index(letter) + 1 for letter in item.text] for item in items]
    return torch.tensor([i for row in indices for i in row]), torch.tensor([len(row) for row in indices])


def train(model: CharacterCTC, pool: Sequence[Spoken], recipe: CTCRecipe, log: Log) -> None:
    """Fit `model` to `pool` in batches of like length; one-cycle learning rate, budget in steps."""
    generator = torch.Generator().manual_seed(recipe.seed)
    rng = np.random.default_rng([recipe.seed, 1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.num_steps, pct_start=0.1
    )
    by_length = np.argsort([len(item.features) for item in pool], kind="stable")
    batches = [by_length[i : i + recipe.batch_size] for i in range(0, len(pool), recipe.batch_size)]
    started, losses = time.monotonic(), []
    model.train()
    for step in range(1, recipe.num_steps + 1):
        if (step - 1) % len(batches) == 0:
            order = rng.permutation(len(batches))
        items = [pool[i] for i in batches[order[(step - 1) % len(batches)]]]
        features, mask = collate(items)
        features = erase(normalise_features(augment(features, mask, generator), mask), generator)
        log_probs = model(features, mask).transpose(0, 1)
        targets, lengths = _targets(items)
        loss = nn.functional.ctc_loss(log_probs, targets, mask[:, ::2].sum(1), lengths, zero_infinity=True)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 100 == 0:
            log(f"step {step} loss {np.mean(losses[-100:]):.4f} {time.monotonic() - started:.0f} s")
    model.eval()


@torch.inference_mode()
def word_error_rate(model: CharacterCTC, pool: Sequence[Spoken]) -> float:
    """Per cent of words wrong over the pool, greedy decoding."""
    import jiwer

    heard = [
        greedy_text(
            model(normalise_features(torch.from_numpy(s.features.astype(np.float32))[None]))[0].argmax(-1).tolist()
        )
        for s in pool
    ]
    return round(100.0 * float(jiwer.wer([s.text for s in pool], heard)), 2)


def pretrain_ctc(out: Path, recipe: CTCRecipe | None = None, log: Log = print) -> dict[str, float]:
    """Run the recipe and write the model with its figures into `out`. Returns the figures (per cent WER)."""
    recipe, config = recipe or CTCRecipe(), CTCConfig()
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng([recipe.seed, 0])
    world = world_words()
    wide, weights = common_words()
    started = time.monotonic()
    texts = [
        world_text(rng, world) if index % 2 == 0 else wide_text(rng, wide, weights)
        for index in range(recipe.num_utterances)
    ]
    pool = make_pool(texts, recipe.seed + 1, recipe.num_resynthesised, config.num_mels)
    hours = sum(len(s.features) for s in pool) * HOP / SAMPLE_RATE / 3600
    log(f"{len(pool)} utterances, {hours:.2f} h, {len(world)} + {len(wide)} words, {time.monotonic() - started:.0f} s")

    model = CharacterCTC(config)
    train(model, pool, recipe, log)
    save_ctc(model, out)

    captions = held_out_captions(recipe.num_held_out, recipe.seed)
    sentences = [wide_text(rng, wide, weights) for _ in range(recipe.num_held_out)]
    figures = {"hours": round(hours, 2), "parameters": float(sum(p.numel() for p in model.parameters()))}
    for name, held_out in (("captions", captions), ("wide_words", sentences)):
        for suffix, resynthesised in (("", 0), ("_griffin_lim", len(held_out))):
            spoken = make_pool(held_out, recipe.seed + 2, resynthesised, config.num_mels)
            figures[f"wer_{name}{suffix}"] = word_error_rate(model, spoken)
    write_json(out / "figures.json", {"figures": figures, "recipe": asdict(recipe)})
    log(str(figures))
    return figures
