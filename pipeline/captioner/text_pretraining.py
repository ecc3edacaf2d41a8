"""The recipe of the bundled GIT: images of the wider drawn world with their captions in words.

This is the paper's vision-language pretraining in miniature: the captioner starts from a model that has
learnt to see from image-text pairs, and never meets text again. Combinations held out for `test_novel` are
in no picture and no caption here. Two steps: the vision tower learns to see (`vision_pretraining`), is frozen, and
the decoder learns to say what it sees. Reads the bundled image tokenizer when the input is tokens (given
as a function, since the captioner knows no vision module); writes a `Captioner` folder.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.captioner.image_text import (
    BOS,
    EOS,
    PAD,
    Images,
    decode_text,
    demo_pairs,
    encode_texts,
    wide_pairs,
    word_vocabulary,
)
from pipeline.captioner.model import Captioner, CaptionerConfig, caption_loss, copy_matching, load_captioner
from pipeline.captioner.vision_pretraining import learn_to_see
from pipeline.corpora.world.scenes import parse_caption

_POOL = 20  # batches whose captions are sorted by length together
_MAX_WORDS = 28


def pretrain_git(
    out_dir: Path,
    config: Callable[[int], CaptionerConfig],
    tokenize: Callable[[Images], torch.Tensor],
    *,
    num_images: int,
    see_steps: int,
    say_steps: int,
    batch_size: int,
    see_rate: float,
    say_rate: float,
    seed: int,
    num_workers: int,
    log: Callable[..., None],
    start_from: Captioner | None = None,
    codebook: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Train on wide image-text pairs, measure captions of the demo's splits in words, save.

    config: vocabulary size -> configuration. tokenize: uint8 [N, S, S, 3] -> what the model takes in.
    start_from: a captioner whose fitting weights are copied (the other input's decoder). codebook: float32 [K, D]
    for tokens. A tower that a killed run left in `out_dir`/seeing is taken up again. Returns the decoder's last mean
    `loss` and, for each demo split, what `said_right` measures.
    """
    torch.manual_seed(seed)
    size = config(3).vision_config.image_size
    pictures, texts = wide_pairs(num_images, seed, size, num_workers)
    words = word_vocabulary(texts)
    model = Captioner(config(len(words) + 3))
    if codebook is not None:
        model.git.image_encoder.vision_model.embeddings.codebook.copy_(codebook)
    if start_from is not None:
        log(event="start", left_random=copy_matching(model, start_from))
    images = tokenize(pictures)
    log(event="images", num_images=len(images))
    validation = _demo_images("val", 200, seed + 2, size, tokenize)
    figures: dict[str, Any] = {}
    seeing = out_dir / "seeing"
    tower = model.git.image_encoder
    common: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "log": log}
    if (seeing / "model.safetensors").exists():
        tower.load_state_dict(load_captioner(seeing).git.image_encoder.state_dict())
        log(event="resumed", folder=seeing.name)
    else:
        learn_to_see(tower, images, texts, validation, steps=see_steps, learning_rate=see_rate, **common)
        model.save_pretrained(seeing)
    features = model.encode_images(images)
    figures["loss"] = _learn_to_say(
        model, words, features, texts, validation, steps=say_steps, learning_rate=say_rate, **common
    )
    for split in ("val", "test", "test_novel"):
        figures[split] = said_right(model, words, *_demo_images(split, 400, seed + 1, size, tokenize))
    model.config.unit_vocabulary = {"layout": "words", "words": words}
    model.save_pretrained(out_dir)
    return figures


def _demo_images(
    split: str, number: int, seed: int, size: int, tokenize: Callable[[Images], torch.Tensor]
) -> tuple[torch.Tensor, list[list[str]]]:
    pictures, texts = demo_pairs(split, number, seed, size)
    return tokenize(pictures), texts


def _learn_to_say(
    model: Captioner,
    words: list[str],
    features: torch.Tensor,
    texts: list[list[str]],
    validation: tuple[torch.Tensor, list[list[str]]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    log: Callable[..., None],
) -> float:
    """Train decoder and projection on the frozen tower's `features` [N, 1, P, D]. Returns the last mean loss."""
    model.git.image_encoder.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.05)
    batches = _batches(texts, batch_size, np.random.default_rng([seed, 12]))
    losses: list[float] = []
    for step in tqdm(range(steps), desc="say", unit="step", mininterval=10, disable=None):
        model.train()
        model.git.image_encoder.eval()
        chosen, said = next(batches)
        loss = caption_loss(model, features[chosen], encode_texts(said, words))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 200 == 0:
            log(event="say", step=step + 1, loss=_recent(losses), **said_right(model, words, *validation))
    model.git.image_encoder.requires_grad_(True)
    return _recent(losses)


def _recent(losses: list[float]) -> float:
    return round(float(np.mean(losses[-250:])), 4)


def _batches(
    texts: list[list[str]], batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray[Any, Any], list[str]]]:
    """Endless (image indices, one caption each), of similar length within a batch."""
    while True:
        pool = rng.integers(len(texts), size=batch_size * _POOL)
        said = [texts[i][rng.integers(len(texts[i]))] for i in pool]
        order = np.argsort([len(text) for text in said] + rng.uniform(-3, 3, len(said)))
        for number in rng.permutation(_POOL):
            chosen = order[number * batch_size : (number + 1) * batch_size]
            yield pool[chosen], [said[i] for i in chosen]


@torch.inference_mode()
def said_right(model: Captioner, words: list[str], images: torch.Tensor, texts: list[list[str]]) -> dict[str, float]:
    """Greedy captions: the share that are one of the right ones (`exact`), and that say the same of both objects
    (`objects`) and of their relation (`relation`), in either order."""
    model.eval()
    out = model.generate(
        input_ids=torch.full((len(images), 1), BOS),
        pixel_values=model.encode_images(images),
        max_new_tokens=_MAX_WORDS,
        do_sample=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    said = [decode_text(row, words) for row in out[:, 1:].tolist()]
    parsed = [
        (parse_caption(text).canonical(), parse_caption(right[0]).canonical())
        for text, right in zip(said, texts, strict=True)
    ]
    return {
        "exact": _share([text in right for text, right in zip(said, texts, strict=True)]),
        "objects": _share([sorted(map(str, a.objects)) == sorted(map(str, b.objects)) for a, b in parsed]),
        "relation": _share([a == b for a, b in parsed if sorted(map(str, a.objects)) == sorted(map(str, b.objects))]),
    }


def _share(hits: list[bool]) -> float:
    return round(float(np.mean(hits)), 4) if hits else 0.0
