"""The recipe of the bundled HuBERT: masked prediction of k-means targets, twice, on synthetic speech.

Reads nothing; writes a transformers `HubertModel` folder (config.json, model.safetensors) and figures.json.
Iteration 1 predicts clusters of MFCC, iteration 2 clusters of the first one's features and starts from its
weights (the paper starts anew; at this size and budget a warm start reaches the same place sooner).
What is heard is a text in any voice; the targets are those of the same text in one reference voice, frame
by frame. So the features learn to leave the speaker out, as ContentVec's do by converting voices.
Sources: Hsu et al. 2021, HuBERT; Qian et al. 2022, ContentVec. The front end is the base model's (group
norm over time).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import scipy.signal
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import HubertConfig, HubertModel

from pipeline.corpora.world import wide_speech
from pipeline.files import write_json
from pipeline.speech.kmeans import fit_kmeans
from pipeline.speech.mfcc import HOP, WINDOW, mfcc
from pipeline.speech.unit_quality import frame_phonemes, unit_quality

Targets = list[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Recipe:
    """Sizes and budgets. Steps, not seconds, so that another machine makes the same model."""

    num_utterances: int = 3500
    num_held_out: int = 150
    num_words: int = 8000
    hidden_size: int = 144
    num_layers: int = 3
    conv_channels: int = 48
    steps: tuple[int, int] = (2200, 2200)
    num_clusters: tuple[int, int] = (100, 200)
    batch_size: int = 10
    crop_frames: int = 100
    learning_rate: float = 2e-3
    unmasked_weight: float = 1.0
    seed: int = 0


def make_config(recipe: Recipe) -> HubertConfig:
    """The base model's shape, made small."""
    return HubertConfig(
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=4,
        intermediate_size=4 * recipe.hidden_size,
        conv_dim=[recipe.conv_channels] * 7,
        num_conv_pos_embeddings=64,
        feat_extract_norm="group",
        conv_bias=False,
        hidden_dropout=0.05,
        attention_dropout=0.05,
        activation_dropout=0.0,
        feat_proj_dropout=0.05,
        layerdrop=0.0,
        mask_time_prob=0.5,
        mask_time_length=10,
    )


def pretrain_hubert(out_dir: Path, recipe: Recipe, num_workers: int, log: Callable[..., None]) -> dict[str, Any]:
    """Make the data, run both iterations, measure on held-out utterances, save. Returns the figures.

    A finished first iteration in `out_dir` is taken up again, so a kill costs at most one iteration.
    """
    torch.manual_seed(recipe.seed)
    total = recipe.num_utterances + recipe.num_held_out
    speech = wide_speech.utterances(total, recipe.seed, recipe.num_words, num_workers)
    speech, held_out = speech[: recipe.num_utterances], speech[recipe.num_utterances :]
    seconds = sum(len(utterance.waveform) for utterance in speech) / 16_000
    log(event="data", hours=round(seconds / 3600, 3), utterances=len(speech))
    waveforms = [_float(utterance.waveform) for utterance in speech]
    maps = [frame_map(utterance) for utterance in speech]
    parallel = joblib.Parallel(n_jobs=num_workers, batch_size=64)
    features = parallel(joblib.delayed(mfcc)(_float(utterance.reference)) for utterance in speech)
    train_mfcc = parallel(joblib.delayed(mfcc)(waveform) for waveform in waveforms[:500])
    test_mfcc = [mfcc(_float(u.waveform)) for u in held_out]
    figures: dict[str, Any] = {"recipe": asdict(recipe), "hours": round(seconds / 3600, 2)}
    figures["mfcc"] = _quality(train_mfcc, test_mfcc, held_out, recipe.seed)
    log(event="mfcc", **figures["mfcc"])

    model = HubertModel(make_config(recipe))
    for iteration in (0, 1):
        folder = out_dir / "iteration1" if iteration == 0 else out_dir
        if iteration == 0 and (folder / "model.safetensors").exists():
            log(event="resumed", folder=folder.name)
            model = HubertModel.from_pretrained(folder)
        else:
            targets = _targets(features, maps, recipe.num_clusters[iteration], recipe.seed)
            figures[f"loss_{iteration + 1}"] = _train(model, waveforms, targets, recipe, iteration, log)
            model.save_pretrained(folder)
        test = [_features(model, u.waveform) for u in held_out]
        sample = [_features(model, u.waveform) for u in speech[:500]]
        layers = []
        for layer in range(1, recipe.num_layers + 1):
            quality = _quality([f[layer] for f in sample], [f[layer] for f in test], held_out, recipe.seed)
            layers.append({"layer": layer, **quality})
            log(event=f"iteration {iteration + 1}", **layers[-1])
        figures[f"iteration{iteration + 1}"] = layers
        if iteration == 0:
            best = int(max(layers, key=lambda entry: entry["pnmi_200"])["layer"])
            features = [
                _features(model, u.reference)[best] for u in tqdm(speech, desc="features", unit="utt", mininterval=5)
            ]
            figures["target_layer_2"] = best
    write_json(out_dir / "figures.json", figures)
    return figures


def _float(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    return samples.astype(np.float32) / np.float32(32768)


def frame_map(utterance: wide_speech.Utterance) -> npt.NDArray[np.int64]:
    """For each frame of the waveform, the reference's frame that speaks the same moment: int64 [num_frames].

    Voices differ in pace: between the synthesiser's own time stamps time is stretched evenly.
    """
    num_frames, num_reference = (
        (len(samples) - WINDOW) // HOP + 1 for samples in (utterance.waveform, utterance.reference)
    )
    here, there = [0, len(utterance.waveform)], [0, len(utterance.reference)]
    if len(utterance.phonemes) == len(utterance.reference_phonemes):
        here[1:1] = [start for start, _ in utterance.phonemes]
        there[1:1] = [start for start, _ in utterance.reference_phonemes]
    middles = np.arange(num_frames) * HOP + WINDOW // 2
    frames = np.rint((np.interp(middles, here, there) - WINDOW // 2) / HOP)
    return np.clip(frames, 0, num_reference - 1).astype(np.int64)


def _targets(
    features: list[npt.NDArray[np.float32]], maps: list[npt.NDArray[np.int64]], num_clusters: int, seed: int
) -> Targets:
    """Clusters of the reference's frames, laid over the frames that are heard."""
    sample = np.concatenate(features)
    rng = np.random.default_rng([seed, 2])
    sample = sample[rng.permutation(len(sample))[:200_000]]
    codebook = fit_kmeans(sample, num_clusters, seed=seed, n_init=1)
    return [codebook.assign(utterance)[places] for utterance, places in zip(features, maps, strict=True)]


def _quality(
    train: list[npt.NDArray[np.float32]],
    test: list[npt.NDArray[np.float32]],
    utterances: list[wide_speech.Utterance],
    seed: int,
) -> dict[str, float]:
    """Unit quality on `test` of codebooks (K = 100, 200) fitted on `train`."""
    phonemes = [p for u, f in zip(utterances, test, strict=True) for p in frame_phonemes(u.phonemes, len(f))]
    sample = np.concatenate(train)
    sample = sample[np.random.default_rng([seed, 3]).permutation(len(sample))[:100_000]]
    figures = {}
    for num_clusters in (100, 200):
        codebook = fit_kmeans(sample, num_clusters, seed=seed, n_init=1, max_iter=20, max_no_improvement=20)
        for name, value in unit_quality(codebook.assign(np.concatenate(test)), phonemes).items():
            figures[f"{name}_{num_clusters}"] = round(value, 4)
    return figures


@torch.inference_mode()
def _features(model: HubertModel, waveform: npt.NDArray[np.int16]) -> list[npt.NDArray[np.float32]]:
    """Every hidden state [num_frames, D] of one utterance, unbatched."""
    model.eval()
    samples = torch.from_numpy(_float(waveform))[None]
    states = model(samples, output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in states]


def _train(
    model: HubertModel,
    waveforms: list[npt.NDArray[np.float32]],
    targets: Targets,
    recipe: Recipe,
    iteration: int,
    log: Callable[..., None],
) -> float:
    """Masked prediction for this iteration's steps. Returns the mean masked loss of the last 100 steps."""
    rng = np.random.default_rng([recipe.seed, 4, iteration])
    head = nn.Linear(recipe.hidden_size, recipe.num_clusters[iteration])
    num_steps = recipe.steps[iteration]
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, num_steps, pct_start=0.08)
    usable = [i for i, target in enumerate(targets) if len(target) >= recipe.crop_frames]
    losses: list[float] = []
    model.train()
    for step in tqdm(range(num_steps), desc=f"iteration {iteration + 1}", unit="step", mininterval=5):
        crops, labels = _batch(rng, waveforms, targets, usable, recipe)
        mask = _mask(rng, labels.shape)
        hidden = model(crops, mask_time_indices=mask).last_hidden_state
        loss_per_frame = functional.cross_entropy(head(hidden).transpose(1, 2), labels, reduction="none")
        masked = loss_per_frame[mask].mean()
        loss = masked + recipe.unmasked_weight * loss_per_frame[~mask].mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        losses.append(float(masked.detach()))
        if (step + 1) % 100 == 0:
            log(
                event="step",
                iteration=iteration + 1,
                step=step + 1,
                masked_loss=round(np.mean(losses[-100:]), 4),
            )
    return round(float(np.mean(losses[-100:])), 4)


def _batch(
    rng: np.random.Generator,
    waveforms: list[npt.NDArray[np.float32]],
    targets: Targets,
    usable: list[int],
    recipe: Recipe,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equal crops float32 [B, samples], so that nothing is padded, and their targets int64 [B, frames]."""
    num_samples = (recipe.crop_frames - 1) * HOP + WINDOW
    crops, labels = [], []
    for index in rng.choice(usable, size=recipe.batch_size):
        start = rng.integers(len(targets[index]) - recipe.crop_frames + 1)
        crop = waveforms[index][start * HOP : start * HOP + num_samples]
        crops.append(_augment(rng, crop))
        labels.append(targets[index][start : start + recipe.crop_frames])
    return torch.from_numpy(np.stack(crops)), torch.from_numpy(np.stack(labels))


def _augment(rng: np.random.Generator, crop: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Another channel, same timing: gain, telephone band, tilt, noise. The targets stay the clean ones."""
    crop = crop * np.float32(np.exp(rng.uniform(np.log(0.2), np.log(1.5))))
    if rng.random() < 0.3:
        edge = rng.uniform(3200, 5500)
        crop = scipy.signal.sosfilt(scipy.signal.butter(4, edge, fs=16_000, output="sos"), crop)
    if rng.random() < 0.5:
        crop = scipy.signal.lfilter([1.0, rng.uniform(-0.6, 0.6)], [1.0], crop)
    if rng.random() < 0.6:
        level = np.exp(rng.uniform(np.log(1e-4), np.log(0.02)))
        crop = crop + rng.standard_normal(len(crop)) * level
    return crop.astype(np.float32)


def _mask(rng: np.random.Generator, shape: tuple[int, ...], length: int = 10, fraction: float = 0.05) -> torch.Tensor:
    """Spans of `length` frames, each frame starting one with probability `fraction` (about 40 % masked)."""
    starts = rng.random(shape) < fraction
    mask = np.zeros(shape, bool)
    for offset in range(length):
        mask[:, offset:] |= starts[:, : shape[1] - offset]
    mask[:, 0] |= ~mask.any(1)
    return torch.from_numpy(mask)
