"""The first half of GIT's pretraining: the vision tower learns to see from what captions say.

A caption's own words, put in order ("a star below a ring" says that the ring is the upper one), are the labels:
colour, shape and size of the upper or left object and of the other, and whether they stand in a column or a
row. Linear heads on what the tower's queries pooled predict them, beside which words the caption holds (Joulin et
al. 2016, Learning visual features from large weakly supervised data). With the caption's cross-entropy alone, the
decoder learns the grammar first and the tower starts to see only after thousands of steps, and objects' order last.
The heads are dropped afterwards.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from pipeline.captioner.model import VisionTower
from pipeline.corpora.world.scenes import SIZES, WIDE_COLOURS, WIDE_SHAPES, parse_caption

NUM_QUERIES = 3
_UNSAID = -100
_WORDS_WEIGHT = 0.1


def scene_labels(texts: list[list[str]]) -> Tensor:
    """int64 [N, 7] from the captions of each image: colour, shape, size of both objects, and column or row.

    -100 where the captions keep silent; all of them unless they speak of two objects.
    """
    rows = []
    for captions in texts:
        parsed = parse_caption(captions[0]).canonical()
        if len(parsed.objects) != 2 or parsed.relation is None:
            rows.append([_UNSAID] * 7)
            continue
        row = []
        for said in parsed.objects:
            row.append(_UNSAID if said.colour is None else WIDE_COLOURS.index(said.colour))
            row.append(_UNSAID if said.shape is None else WIDE_SHAPES.index(said.shape))
            row.append(_UNSAID if said.size is None else SIZES.index(said.size))
        rows.append([*row, int(parsed.relation != "above")])
    return torch.tensor(rows)


def word_labels(texts: list[list[str]]) -> Tensor:
    """float32 [N, W]: which of all words (sorted) the first caption of each image holds."""
    words = sorted({word for captions in texts for word in captions[0].split()})
    places = {word: place for place, word in enumerate(words)}
    labels = torch.zeros(len(texts), len(words))
    for row, captions in zip(labels, texts, strict=True):
        row[[places[word] for word in set(captions[0].split())]] = 1.0
    return labels


class SceneHeads(nn.Module):
    """What the tower's three queries found, put in words: one object, the other, and their layout."""

    def __init__(self, dim: int, num_words: int) -> None:
        super().__init__()
        self.attributes = nn.ModuleList(nn.Linear(dim, len(names)) for names in (WIDE_COLOURS, WIDE_SHAPES, SIZES))
        self.layout = nn.Linear(dim, 2)
        self.words = nn.Linear(dim, num_words)

    def forward(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of the seven labels, each [B, classes], and of the words [B, W], from the tower's [B, 3 + N, D]."""
        logits = [head(features[:, place]) for place in (0, 1) for head in self.attributes]
        return [*logits, self.layout(features[:, 2])], self.words(features[:, NUM_QUERIES + 1 :].mean(1))


def learn_to_see(
    tower: VisionTower,
    images: Tensor,
    texts: list[list[str]],
    held_out: tuple[Tensor, list[list[str]]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    log: Callable[..., None],
) -> None:
    """Train `tower`, which has `NUM_QUERIES` queries, in place on images (as it takes them) and their captions.

    The log tells the share of `held_out` images of which the heads name everything right.
    """
    scenes, words = scene_labels(texts), word_labels(texts)
    dim = tower.vision_model.config.hidden_size
    heads = SceneHeads(dim, words.shape[1])
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.05)
    rng = np.random.default_rng([seed, 13])
    for step in tqdm(range(steps), desc="see", unit="step", mininterval=10, disable=None):
        tower.train()
        chosen = rng.integers(len(images), size=batch_size)
        logits, said = heads(tower(jitter(rng, images[chosen])).last_hidden_state)
        scene_loss = torch.stack(
            [
                functional.cross_entropy(guess, label, ignore_index=_UNSAID, reduction="sum")
                for guess, label in zip(logits, scenes[chosen].T, strict=True)
            ]
        ).sum()
        word_loss = functional.binary_cross_entropy_with_logits(said, words[chosen], reduction="sum")
        optimizer.zero_grad(set_to_none=True)
        ((scene_loss + _WORDS_WEIGHT * word_loss) / batch_size).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            right = _all_right(tower, heads, *held_out)
            log(event="see", step=step + 1, loss=round(float(scene_loss.detach()) / batch_size, 4), all_right=right)


@torch.inference_mode()
def _all_right(tower: VisionTower, heads: SceneHeads, images: Tensor, texts: list[list[str]]) -> float:
    tower.eval()
    logits, _ = heads(tower(images).last_hidden_state)
    guesses = torch.stack([guess.argmax(1) for guess in logits], 1)
    return round(float((guesses == scene_labels(texts)).all(1).float().mean()), 4)


def jitter(rng: np.random.Generator, images: Tensor) -> Tensor:
    """Pixels get another brightness; tokens stay as they are."""
    if not images.is_floating_point():
        return images
    return images * torch.from_numpy(rng.uniform(0.8, 1.1, (len(images), 1, 1, 1)).astype(np.float32))
