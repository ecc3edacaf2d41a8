"""The loops of generation: one id at a time for many rows at once, over keys and values that are kept.

An image goes through tower and decoder once, and its keys and values serve all its beams or samples. Buffers are
allocated ahead and grow in blocks; a row that is done leaves its place to a living one, so that nobody waits for the
longest caption. Greedy decoding and beam search give the ids of transformers' `generate`. Reads and writes no files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.captioner.attention import remember_images, say

Adjust = Callable[[Tensor, Tensor], Tensor]
"""(ids so far int64 [R, 1 + t] with BOS, scores [R, V]) -> scores: what transformers calls a logits processor."""

Pick = Callable[[Tensor, Tensor, int], Tensor]
"""(scores [R, V], numbers of the rows int64 [R], step) -> ids int64 [R]."""

_BLOCK = 64
# On a GPU, asking whether a row is done waits for it, so it is asked seldom.
_ASK_EVERY = {"cpu": 1}
_NEVER = -1e9


@dataclass
class Said:
    """Ids int64 [R, L] without BOS, `length` int64 [R] of them meant (EOS included), log-probability float32 [R]."""

    ids: Tensor
    length: Tensor
    log_probability: Tensor


class RowMemory:
    """Keys and values of every layer in buffers [R, H, capacity, D]; `rows` and `length` of them are in use."""

    def __init__(self) -> None:
        self.buffers: list[list[Tensor]] = []
        self.rows = self.length = self.prefix = 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write [R, H, T, D] behind what is there and return all of it. `advance` follows after the last layer."""
        end = self.length + key.shape[2]
        if layer_idx == len(self.buffers):
            self.rows = len(key)
            shape = (*key.shape[:2], end + _BLOCK, key.shape[3])
            self.buffers.append([key.new_empty(shape), key.new_empty(shape)])
        pair = self.buffers[layer_idx]
        for place, new in enumerate((key, value)):
            if end > pair[place].shape[2]:
                pair[place] = functional.pad(pair[place][: self.rows], (0, 0, 0, end + _BLOCK - pair[place].shape[2]))
            pair[place][: self.rows, :, self.length : end] = new
        return pair[0][: self.rows, :, :end], pair[1][: self.rows, :, :end]

    def advance(self, number: int) -> None:
        """`number` places of every layer are written."""
        self.length += number

    def repeat(self, copies: int) -> None:
        """The image's part for `copies` rows each, one beside the other."""
        self.prefix, self.rows = self.length, self.rows * copies
        if copies > 1:
            self.buffers = [[buffer.repeat_interleave(copies, 0) for buffer in pair] for pair in self.buffers]

    def drop(self, done: Tensor) -> Tensor:
        """Leave out rows that are done, bool [R]; the last ones take their places. Returns int64 [left], who stands
        where."""
        left = int((~done).sum())
        order = torch.arange(self.rows, device=done.device)
        holes, movers = order[:left][done[:left]], order[left:][~done[left:]]
        self.copy(movers, holes, 0)
        order[holes] = movers
        self.rows = left
        return order[:left]

    def copy(self, sources: Tensor, targets: Tensor, start: int) -> None:
        """Places from `start` on of rows `sources` to rows `targets`, all read before any is written."""
        if len(sources):
            for pair in self.buffers:
                for buffer in pair:
                    buffer[targets, :, start : self.length] = buffer[sources, :, start : self.length]


class Decoder:
    """The model with what its rows have said: `step` gives what may follow."""

    def __init__(self, model: Any, images: Tensor, copies: int) -> None:
        self.model, self.memory, self.time = model, RowMemory(), 0
        self.memory.advance(remember_images(model, images, self.memory))
        self.memory.repeat(copies)

    def step(self, ids: Tensor) -> Tensor:
        """Ids int64 [R] said last -> scores float32 [R, V]."""
        hidden = say(self.model, ids[:, None], self.memory, self.time)
        self.memory.advance(1)
        self.time += 1
        return self.model.output(hidden[:, 0]).float()


def extend(
    model: Any,
    images: Tensor,
    *,
    bos: int,
    eos: int,
    pad: int,
    limit: int,
    copies: int,
    adjust: Adjust | None,
    pick: Pick,
) -> Said:
    """Each row on its own until EOS or `limit` ids; `copies` rows an image, one beside the other.

    The log-probability is the model's own: before `adjust`, whatever `pick` did.
    """
    decoder = Decoder(model, images, copies)
    number, device = len(images) * copies, images.device
    said = torch.full((number, 1 + limit), pad, device=device)
    said[:, 0] = bos
    length = torch.full((number,), limit, device=device)
    total = torch.zeros(number, device=device)
    rows = torch.arange(number, device=device)  # which of the rows stands in which place
    done = torch.zeros(number, dtype=torch.bool, device=device)
    last = said[:, 0]
    ask_every = _ASK_EVERY.get(device.type, 8)
    for time in range(limit):
        scores = decoder.step(last)
        adjusted = adjust(said[rows, : time + 1], scores) if adjust else scores
        last = pick(adjusted, rows, time).masked_fill(done, pad)
        gained = scores.gather(1, last[:, None])[:, 0] - scores.logsumexp(1)
        total[rows] += gained.masked_fill(done, 0.0)
        said[rows, time + 1] = last
        ended = (last == eos) & ~done
        length[rows] = torch.where(ended, time + 1, length[rows])
        done |= ended
        if (time + 1) % ask_every == 0 and bool(done.any()):
            order = decoder.memory.drop(done)
            if not len(order):
                break
            rows, last, done = rows[order], last[order], done[order]
    return Said(said[:, 1:], length, total)


@dataclass
class _Beams:
    """`ids` int64 [B, K, 1 + L] with their scores float32 [B, K]; `done`: those that ended; `length` without BOS."""

    ids: Tensor
    scores: Tensor
    length: Tensor
    done: Tensor


def search(
    model: Any,
    images: Tensor,
    *,
    bos: int,
    eos: int,
    pad: int,
    limit: int,
    num_beams: int,
    length_penalty: float,
    adjust: Adjust | None,
) -> Said:
    """Beam search as transformers' (`early_stopping` off): `num_beams` rows an image, best first.

    A caption's score is its log-probability (after `adjust`) over its length to the power `length_penalty`; it is
    `log_probability` here. An image is done when its best open beam, at its length, scores below all finished ones.
    """
    decoder = Decoder(model, images, num_beams)
    number, device = len(images), images.device
    ids = torch.full((number, num_beams, 1 + limit), pad, device=device)
    ids[:, :, 0] = bos
    # Only the first beam speaks at first, or all would say the same.
    scores = torch.full((number, num_beams), _NEVER, device=device)
    scores[:, 0] = 0.0
    finished = _Beams(
        ids.clone(),
        torch.full_like(scores, _NEVER),
        torch.zeros_like(ids[:, :, 0]),
        torch.zeros_like(scores, dtype=torch.bool),
    )
    items = torch.arange(number, device=device)  # which of the images stands in which place
    for time in range(limit):
        flat = ids[:, :, : time + 1].flatten(0, 1)
        step = decoder.step(flat[:, -1]).log_softmax(1)
        step = adjust(flat, step) if adjust else step
        vocabulary = step.shape[1]
        sums = (step.view(len(items), num_beams, -1) + scores[:, :, None]).flatten(1)
        best, places = sums.topk(2 * num_beams)
        parents, tokens = places // vocabulary, places % vocabulary
        candidates = _rows(ids, parents)
        candidates[:, :, time + 1] = tokens
        ends = (tokens == eos) | (time + 1 == limit)
        _finish(finished, items, candidates[:, :num_beams], best, ends, time + 1, length_penalty)
        chosen = (best + ends * _NEVER).topk(num_beams)[1]
        ids, scores = _rows(candidates, chosen), (best + ends * _NEVER).gather(1, chosen)
        worst = torch.where(finished.done[items], finished.scores[items].amin(1, keepdim=True), _NEVER)
        closed = (scores[:, :1] / (time + 1) ** length_penalty <= worst).all(1)
        parents = parents.gather(1, chosen)
        if time + 1 == limit or bool(closed.all()):
            break
        _follow(decoder.memory, parents, num_beams)
        if bool(closed.any()):
            # The rows of an image go together, so whole images fill the holes.
            order = decoder.memory.drop(closed.repeat_interleave(num_beams))[::num_beams] // num_beams
            items, ids, scores = items[order], ids[order], scores[order]
    return Said(finished.ids[:, :, 1:].flatten(0, 1), finished.length.flatten(), finished.scores.flatten())


def _rows(values: Tensor, chosen: Tensor) -> Tensor:
    """values [B, K, L] by chosen [B, C] -> [B, C, L]."""
    return values.gather(1, chosen[:, :, None].expand(-1, -1, values.shape[2]))


def _finish(
    finished: _Beams, items: Tensor, ids: Tensor, sums: Tensor, ends: Tensor, length: int, length_penalty: float
) -> None:
    """Candidates [B, K, ...] that end here join the finished ones of their image, of which the best K stay."""
    number = ids.shape[1]
    sums, ends = sums[:, :number], ends[:, :number]
    scores = torch.where(ends, sums / length**length_penalty, _NEVER)
    merged = torch.cat([finished.scores[items], scores], 1)
    best, chosen = merged.topk(number)
    finished.scores[items] = best
    finished.ids[items] = _rows(torch.cat([finished.ids[items], ids], 1), chosen)
    finished.done[items] = torch.cat([finished.done[items], ends], 1).gather(1, chosen)
    lengths = torch.cat([finished.length[items], torch.full_like(chosen, length)], 1)
    finished.length[items] = lengths.gather(1, chosen)


def _follow(memory: RowMemory, parents: Tensor, num_beams: int) -> None:
    """Each beam goes on from its parent's keys and values; the image's part is the same for all beams of one."""
    own = torch.arange(parents.numel(), device=parents.device)
    sources = (parents + own.view(-1, num_beams)[:, :1]).flatten()
    moved = sources != own
    memory.copy(sources[moved], own[moved], memory.prefix)
