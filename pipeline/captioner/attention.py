"""GIT's decoder attention through torch's fused kernel, and the image's rows apart from the caption's.

transformers' GIT computes attention in plain steps only (scores, softmax, dropout, product). `FusedSelfAttention` is
the same layer, same weights and names, on `scaled_dot_product_attention`. Nothing here reads or writes files.

In GIT the image's rows attend to the image alone, and the caption's rows to the image and to what was said before.
So the decoder can take the image's rows first, keep their keys and values, and then take the caption's rows: no mask
for the image, half as many scores, and the last layer needs no more of an image than its keys and values. Training
(`caption_states`) and generation (`decoding`) both go that way; `GitForCausalLM.forward` remains, and equals it.
"""

from collections.abc import Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.git.modeling_git import GitSelfAttention

Kind = Literal["fused", "plain"]

# From so many vectors on the tower's fused attention is faster on a CPU too; below, the two are alike.
_LONG = 64


class FusedSelfAttention(GitSelfAttention):
    """GIT's self-attention in one call of torch. Equal to GIT's own within rounding.

    Two cases keep GIT's own steps: `fused` is False, or attention dropout is at work on a CPU, where torch has no
    fused kernel for it and is no faster.
    """

    fused: bool = True

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [B, T, D]; attention_mask: added to the scores, or bool, True where a row may look."""
        dropout = self.dropout.p if self.training else 0.0
        if not self.fused or (dropout and hidden_states.device.type == "cpu"):
            return super().forward(hidden_states, _added(attention_mask, hidden_states), past_key_values, **kwargs)
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            layer(hidden_states).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            attention_mask = attention_mask.to(query.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value, attention_mask, dropout)
        return mixed.transpose(1, 2).reshape(hidden_states.shape[:-1] + (self.all_head_size,)), None


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A bool mask as something to add to scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(~mask, torch.finfo(like.dtype).min)


def choose_attention(model: PreTrainedModel, kind: Kind) -> None:
    """Make every attention of a GIT model, the tower's included, `fused` or `plain` (transformers' own steps).

    The layers stay as they are, with their weights and hooks; only how they compute changes.
    """
    for module in model.modules():
        if isinstance(module, GitSelfAttention):
            module.__class__ = FusedSelfAttention
            module.fused = kind == "fused"
    vision: Any = model.config.vision_config
    is_long = (vision.image_size // vision.patch_size) ** 2 >= _LONG
    vision._attn_implementation = "sdpa" if kind == "fused" and is_long else "eager"


class Memory(Protocol):
    """What an attention layer hands its new keys and values [B, H, T, D] to, and gets all it may look at from."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]: ...


class PrefixMemory:
    """Keeps the first keys and values of each layer (the image's) and puts them before later ones; for training."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """[B, H, N, D] at first, then [B, H, T, D] -> [B, H, N + T, D]."""
        if layer_idx not in self.kept:
            self.kept[layer_idx] = key, value
            return key, value
        first_key, first_value = self.kept[layer_idx]
        return torch.cat([first_key, key], 2), torch.cat([first_value, value], 2)


def remember_images(model: Any, images: Tensor, memory: Memory) -> int:
    """Take images (as `Captioner` takes them) through tower and decoder; returns N, the vectors of one."""
    hidden = model.git.visual_projection(model.git.image_encoder(images).last_hidden_state)
    *layers, last = model.git.encoder.layer
    for layer in layers:
        hidden = layer(hidden, None, memory)
    # Of the last layer nobody reads the image's rows, so they end at its keys and values.
    if model.config.norm_first:
        hidden = last.attention.output.LayerNorm(hidden)
    attention = last.attention.self
    shape = (*hidden.shape[:-1], attention.num_attention_heads, attention.attention_head_size)
    key, value = (part(hidden).view(shape).transpose(1, 2) for part in (attention.key, attention.value))
    memory.update(key, value, attention.layer_idx)
    return hidden.shape[1]


def say(model: Any, ids: Tensor, memory: Memory, start: int = 0, mask: Tensor | None = None) -> Tensor:
    """Hidden states [B, T, D] of `ids` int64 [B, T] at the caption's positions from `start` on, after `memory`."""
    hidden = model.git.embeddings(ids, past_key_values_length=start)
    for layer in _layers(model):
        hidden = layer(hidden, mask, memory)
    return model.git.encoder.norm(hidden) if model.config.norm_first else hidden


def _layers(model: Any) -> Iterable[nn.Module]:
    return model.git.encoder.layer


def caption_states(model: Any, images: Tensor, ids: Tensor) -> Tensor:
    """Hidden states [B, T, D] of a whole caption `ids` int64 [B, T]: what `GitModel` gives for its text rows."""
    memory = PrefixMemory()
    number = remember_images(model, images, memory)
    length = ids.shape[1]
    mask = torch.ones(length, number + length, dtype=torch.bool, device=ids.device).tril(number)
    return say(model, ids, memory, mask=mask[None, None])
