"""The recipe of the bundled GIT: images of the wider drawn world with their captions in words.

This is the paper's vision-language pretraining in miniature: the captioner starts from a model that has
learnt to see from image-text pairs, and never meets text again. Combinations held out for `test_novel` are
in no picture and no caption here. Reads the bundled image tokenizer when the input is tokens (given as a
function, since the captioner knows no vision module); writes a `Captioner` folder and figures.json.

Two losses: the caption's cross-entropy, and, for the tower alone, which words the caption holds (Joulin et
al. 2016, Learning visual features from large weakly supervised data). Without the second, the decoder
learns the grammar first and the tower starts to see only after thousands of steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from pipeline.captioner.model import Captioner, CaptionerConfig, copy_matching
from pipeline.corpora.world.draw import render, render_wide
from pipeline.corpora.world.scenes import captions, sample_scene, sample_wide, wide_captions

PAD, BOS, EOS = 0, 1, 2
_CHUNK = 250

Images = npt.NDArray[np.uint8]


def wide_pairs(num_images: int, seed: int, image_size: int, num_workers: int) -> tuple[Images, list[list[str]]]:
    """Pictures uint8 [N, S, S, 3] and the captions that fit each; the same for any number of workers."""
    chunks = range(0, num_images, _CHUNK)
    parts = joblib.Parallel(n_jobs=num_workers)(
        joblib.delayed(_wide_chunk)(start, min(start + _CHUNK, num_images), seed, image_size)
        for start in tqdm(chunks, desc="drawing", unit="chunk", mininterval=5)
    )
    images = np.concatenate([part for part, _ in parts])
    return images, [texts for _, part in parts for texts in part]


def _wide_chunk(start: int, stop: int, seed: int, image_size: int) -> tuple[Images, list[list[str]]]:
    images, texts = [], []
    for index in range(start, stop):
        rng = np.random.default_rng([seed, 10, index])
        scene = sample_wide(rng)
        images.append(np.asarray(render_wide(scene, rng, image_size)))
        texts.append(wide_captions(scene))
    return np.stack(images), texts


def demo_pairs(split: str, num_images: int, seed: int, image_size: int) -> tuple[Images, list[list[str]]]:
    """Pictures of a demo split (drawn large, then shrunk, as the corpus is) and their five captions."""
    images, texts = [], []
    for index in range(num_images):
        rng = np.random.default_rng([seed, 11, index])
        scene = sample_scene(rng, split)
        image = render(scene, rng, 128).resize((image_size, image_size), resample=3)
        images.append(np.asarray(image))
        texts.append(captions(scene))
    return np.stack(images), texts


def word_vocabulary(texts: list[list[str]]) -> list[str]:
    """Sorted words; ids start after PAD, BOS and EOS."""
    return sorted({word for several in texts for text in several for word in text.split()})


def pretrain_git(
    out_dir: Path,
    config: Callable[[int], CaptionerConfig],
    tokenize: Callable[[Images], torch.Tensor],
    *,
    num_images: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    num_workers: int,
    log: Callable[..., None],
    presence_weight: float = 0.1,
    start_from: Captioner | None = None,
    codebook: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Train on wide image-text pairs, measure captions of the demo's splits in words, save.

    config: vocabulary size -> configuration. tokenize: uint8 [N, S, S, 3] -> what the model takes in.
    start_from: a captioner whose fitting weights are copied (the other input's). codebook: float32 [K, D] for
    tokens. Returns figures: `exact` and teacher-forced loss per demo split.
    """
    torch.manual_seed(seed)
    first = config(3)
    pictures, texts = wide_pairs(num_images, seed, first.vision_config.image_size, num_workers)
    log(event="pictures", num_images=len(pictures))
    words = word_vocabulary(texts)
    model = Captioner(config(len(words) + 3))
    if codebook is not None:
        model.git.image_encoder.vision_model.embeddings.codebook.copy_(codebook)
    if start_from is not None:
        log(event="start", left_random=copy_matching(model, start_from))
    inputs = tokenize(pictures)
    presence = nn.Linear(model.config.vision_config.hidden_size, len(words))
    parameters = [*model.parameters(), *presence.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.05)
    rng = np.random.default_rng([seed, 12])
    losses: list[float] = []
    for step in tqdm(range(steps), desc="GIT", unit="step", mininterval=10):
        model.train()
        chosen = rng.integers(len(pictures), size=batch_size)
        spoken = [texts[i][rng.integers(len(texts[i]))] for i in chosen]
        ids = encode_words(spoken, words)
        features = model.git.image_encoder(_jitter(rng, inputs[chosen])).last_hidden_state
        loss = caption_loss(model, features[:, None], ids)
        optimizer.zero_grad(set_to_none=True)
        (loss + presence_weight * _presence_loss(presence(features[:, 1:].mean(1)), ids)).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 250 == 0:
            figures = evaluate_words(model, words, tokenize, seed)
            log(event="step", step=step + 1, loss=round(float(np.mean(losses[-250:])), 4), **figures)
            model.save_pretrained(out_dir)
    figures = {
        "loss": round(float(np.mean(losses[-250:])), 4),
        **evaluate_words(model, words, tokenize, seed, 400),
    }
    model.config.unit_vocabulary = {"layout": "words", "words": words}
    model.save_pretrained(out_dir)
    return figures


def _presence_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Which words does the caption hold? Binary cross-entropy summed over words; `ids` as `encode_words`."""
    present = torch.zeros(len(ids), logits.shape[1] + 3).scatter_(1, ids, 1.0)[:, 3:]
    return functional.binary_cross_entropy_with_logits(logits, present, reduction="none").sum(1).mean()


def _jitter(rng: np.random.Generator, images: torch.Tensor) -> torch.Tensor:
    """Pixels get another brightness; tokens stay as they are."""
    if not images.is_floating_point():
        return images
    return images * torch.from_numpy(rng.uniform(0.8, 1.1, (len(images), 1, 1, 1)).astype(np.float32))


def encode_words(texts: list[str], words: list[str]) -> torch.Tensor:
    """int64 [B, T]: BOS, the words' ids, EOS, then PAD."""
    ids = {word: number + 3 for number, word in enumerate(words)}
    rows = [[BOS, *(ids[word] for word in text.split()), EOS] for text in texts]
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def caption_loss(
    model: Captioner, images: torch.Tensor, ids: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy of teacher forcing over the caption's positions; `ids` int64 [B, T] padded with 0."""
    logits = model(input_ids=ids[:, :-1], pixel_values=images, use_cache=False).logits
    logits = logits[:, -(ids.shape[1] - 1) :]
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == PAD, -100)
    return functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, label_smoothing=label_smoothing)


@torch.inference_mode()
def evaluate_words(
    model: Captioner,
    words: list[str],
    tokenize: Callable[[Images], torch.Tensor],
    seed: int,
    number: int = 100,
) -> dict[str, float]:
    """Greedy captions in words: how many are one of the five right ones, on each demo split."""
    model.eval()
    figures = {}
    for split in ("test", "test_novel"):
        pictures, texts = demo_pairs(split, number, seed + 1, model.config.vision_config.image_size)
        prompt = torch.full((number, 1), BOS)
        features = model.encode_images(tokenize(pictures))
        out = model.generate(input_ids=prompt, pixel_values=features, max_new_tokens=24, do_sample=False)
        spoken = []
        for row in out[:, 1:].tolist():
            row = row[: row.index(EOS)] if EOS in row else row
            spoken.append(" ".join(words[i - 3] for i in row if i >= 3))
        right = [text in several for text, several in zip(spoken, texts, strict=True)]
        figures[f"exact_{split}"] = round(float(np.mean(right)), 4)
    return figures
