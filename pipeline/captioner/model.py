"""The captioner: transformers' GIT with a vision side that reads pixels or image tokens.

GIT (Wang et al. 2022) puts the image's vectors before the caption's and predicts the caption from left to
right. Here the caption is speech units. Everything is transformers' own `GitForCausalLM` (names of weights,
attention, generation) except the first layer of the vision tower, which `config.input` chooses:

- `pixels`: float32 [B, 3, S, S] in [0, 1];
- `tokens`: int64 [B, 1, H, W], looked up in the image tokenizer's codebook, which is kept frozen inside, or the
  vectors themselves, float32 [B, D, H, W], after an augmentation; of a grid larger than `token_grid`, the centre;
- either may be replaced by the tower's own output, float32 [B, 1, N, D], computed once when it is frozen.

Two things differ from GIT where the configuration says so, because small models learn sooner with them:
`num_queries` learnt queries pool the tower's output and stand before it, and `norm_first` puts each decoder layer's
norms before its parts instead of behind them.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional
from transformers import GitConfig, GitForCausalLM, GitVisionConfig
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPast
from transformers.models.git.modeling_git import GitEncoder, GitLayer, GitVisionEmbeddings, GitVisionModel

from pipeline.captioner.attention import Kind, caption_states, choose_attention
from pipeline.errors import InputError

# Mean and deviation of CLIP's training images, which GIT's towers expect (openai/clip-vit-base-patch16).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_POSITIONS = 384
"""Of the bundled captioners, and of a new one unless its captions are longer."""


@strict
class CaptionerConfig(GitConfig):
    """GIT's configuration and what it takes in. `stem_channels` empty: one patch convolution, as GIT and SeiT.

    num_queries: vectors pooled from the tower's output, put before it. norm_first: see `NormFirstLayer`.
    tower_norms: norms before and after the tower's layers, as CLIP has and SeiT's ViT has not. image_resize: how
    a picture becomes square for `input: pixels` (`crop` as GIT's own processor, or `squash`). max_units: ids that
    a spoken caption has at most.
    """

    model_type = "im2speech"

    input: str = "tokens"
    stem_channels: list[int] | tuple[int, ...] = ()
    token_vocab: int = 0
    token_dim: int = 0
    token_grid: list[int] | tuple[int, ...] = ()
    num_queries: int = 0
    norm_first: bool = False
    image_tokenizer: str = ""
    max_units: int = 256
    tower_norms: bool = True
    image_resize: str = "squash"
    unit_codebook: str = ""
    unit_vocabulary: dict | None = None


def clip_normalize(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, H, W] in [0, 1] less CLIP's mean, by its deviation.

    Constants, not buffers: transformers builds models without memory, and what is not saved would stay so.
    """
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


class Stem(nn.Module):
    """The tower's first layer: a grid of vectors from pixels or tokens, a class vector and positions.

    Convolutions with batch norm before a transformer learn shapes from far fewer images than one patch
    projection (Xiao et al. 2021, Early convolutions help transformers see better).
    """

    codebook: torch.Tensor

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        vision = config.vision_config
        self.is_tokens = config.input == "tokens"
        channels = config.token_dim if self.is_tokens else vision.num_channels
        side = config.token_grid[0] if self.is_tokens else vision.image_size
        grid = vision.image_size // vision.patch_size
        if self.is_tokens:
            self.token_grid = tuple(config.token_grid)
            self.register_buffer("codebook", torch.zeros(config.token_vocab, config.token_dim))
        layers: list[nn.Module] = []
        for width in config.stem_channels:
            layers += [nn.Conv2d(channels, width, 3, stride=1 if side == grid else 2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels, side = width, side if side == grid else (side + 1) // 2
        if side % grid:
            raise InputError(f"captioner: a stem from {side} to {grid} vectors a side is not possible")
        stride = side // grid
        # SeiT's stem overlaps its patches: kernel 4, stride 2, padding 1.
        overlap = stride if self.is_tokens and not config.stem_channels else 0
        layers.append(nn.Conv2d(channels, vision.hidden_size, stride + overlap, stride, padding=overlap // 2))
        self.layers = nn.Sequential(*layers)
        self.class_embedding = nn.Parameter(torch.randn(vision.hidden_size) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(1, grid * grid + 1, vision.hidden_size) * 0.02)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Pixels or tokens (see the module) -> float32 [B, 1 + grid * grid, D]."""
        if self.is_tokens:
            vectors = pixel_values
            if not pixel_values.is_floating_point():
                vectors = self.codebook[pixel_values[:, 0]].permute(0, 3, 1, 2)
            free = [whole - kept for whole, kept in zip(vectors.shape[2:], self.token_grid, strict=True)]
            if min(free) < 0:
                raise InputError(f"captioner: {list(vectors.shape[2:])} tokens, but it takes {list(self.token_grid)}")
            top, left = free[0] // 2, free[1] // 2
            images = vectors[:, :, top : top + self.token_grid[0], left : left + self.token_grid[1]]
        else:
            images = clip_normalize(pixel_values)
        patches = self.layers(images).flatten(2).transpose(1, 2)
        classes = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([classes, patches], 1) + self.position_embedding


class NormalizedPatches(GitVisionEmbeddings):
    """GIT's own patch embedding (its checkpoints fit), taking pixels in [0, 1] like every input here."""

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        return super().forward(clip_normalize(pixel_values), interpolate_pos_encoding)


class QueryPooling(nn.Module):
    """Learnt queries look for one thing each, and what they find stands before what they looked at.

    In pretraining each is told what to look for (`vision_pretraining`), so that the decoder finds an object in one
    vector. One head of attention; a vector of its own marks the query.
    """

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, dim) * 0.1)
        self.keys = nn.Linear(dim, dim)
        self.marks = nn.Parameter(torch.randn(num_queries, dim) * 0.3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """float32 [B, N, D] -> [B, num_queries + N, D]."""
        scores = self.queries @ self.keys(features).transpose(1, 2) / features.shape[2] ** 0.5
        return torch.cat([scores.softmax(-1) @ features + self.marks, features], 1)


class VisionTower(GitVisionModel):
    """GIT's vision tower, with pooling queries if any, that also lets its own output pass: a frozen tower then runs
    once an image."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__(config.vision_config)
        dim = config.vision_config.hidden_size
        self.pooling = QueryPooling(dim, config.num_queries) if config.num_queries else nn.Identity()

    def get_input_embeddings(self) -> nn.Module:
        """The first layer, whichever it is; gradient checkpointing asks for it."""
        return self.vision_model.embeddings

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> BaseModelOutput:
        if pixel_values.is_floating_point() and pixel_values.shape[1] == 1:
            return BaseModelOutput(last_hidden_state=pixel_values[:, 0])
        out = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        return BaseModelOutput(last_hidden_state=self.pooling(out.last_hidden_state))


class NormFirstLayer(GitLayer):
    """GIT's layer with its norms before attention and feed-forward, not behind (Xiong et al. 2020, On layer
    normalization in the transformer architecture). Same weights, same names."""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        attended, feed = self.attention.output, self.output
        normed = attended.LayerNorm(hidden_states)
        mixed, _ = self.attention.self(normed, attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + attended.dropout(attended.dense(mixed))
        inner = self.intermediate(feed.LayerNorm(hidden_states))
        return hidden_states + feed.dropout(feed.dense(inner))


class NormFirstEncoder(GitEncoder):
    """Layers of `NormFirstLayer`, and the norm that the last of them lacks."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__(config)
        self.layer = nn.ModuleList(NormFirstLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        out = super().forward(*args, **kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(out.last_hidden_state), past_key_values=out.past_key_values
        )


class Captioner(GitForCausalLM):
    """Image -> speech units (or words, in pretraining). See the module for what `pixel_values` may be."""

    config_class = CaptionerConfig
    config: CaptionerConfig

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__(config)
        tower = VisionTower(config)
        if config.input == "pixels" and not config.stem_channels:
            tower.vision_model.embeddings = NormalizedPatches(config.vision_config)
        else:
            tower.vision_model.embeddings = Stem(config)
        if not config.tower_norms:
            tower.vision_model.pre_layrnorm = tower.vision_model.post_layernorm = nn.Identity()
        self.git.image_encoder = tower
        if config.norm_first:
            self.git.encoder = NormFirstEncoder(config)
        self.set_attention("fused")

    def set_attention(self, kind: Kind) -> None:
        """`fused`: torch's attention kernel, the default. `plain`: transformers' own steps, the same to rounding."""
        choose_attention(self, kind)

    def caption_logits(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """float32 [B, T, vocabulary]: what follows each of `ids` int64 [B, T], whose first is BOS.

        As `forward` without a padding mask, but nothing is computed that only the image's rows would use.
        """
        if self.training and any(layer.gradient_checkpointing for layer in self.git.encoder.layer):
            # Checkpointed layers are run twice and may keep no memory.
            return self(input_ids=ids, pixel_values=images, use_cache=False, logits_to_keep=ids.shape[1]).logits
        return self.output(caption_states(self, images, ids))

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
        """The tower's output float32 [B, 1, N, D], to be given back as `pixel_values` while it is frozen."""
        self.eval()
        device = next(self.parameters()).device
        parts = [
            self.git.image_encoder(images[start : start + batch_size].to(device)).last_hidden_state[:, None]
            for start in range(0, len(images), batch_size)
        ]
        # A clone: tensors born in inference mode may not enter autograd.
        return torch.cat(parts).clone()

    def freeze_vision(self, projection: bool = True) -> None:
        """Train neither tower nor, unless told otherwise, projection: what the reference calls `--vit_fix`."""
        self.git.image_encoder.requires_grad_(False)
        self.git.visual_projection.requires_grad_(not projection)


def caption_loss(
    model: Captioner, images: torch.Tensor, ids: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy of teacher forcing over the caption's positions; `ids` int64 [B, T] padded behind with the
    configuration's pad id."""
    logits = model.caption_logits(images, ids[:, :-1])
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == model.config.pad_token_id, -100)
    return functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, label_smoothing=label_smoothing)


def make_config(
    *,
    input: Literal["tokens", "pixels"],
    vocab_size: int,
    hidden_size: int = 128,
    num_layers: int = 3,
    vision_layers: int = 2,
    num_heads: int = 4,
    image_size: int = 64,
    grid: int = 4,
    stem_channels: tuple[int, ...] = (),
    token_vocab: int = 0,
    token_dim: int = 0,
    token_grid: tuple[int, int] = (0, 0),
    num_queries: int = 0,
    norm_first: bool = True,
    image_tokenizer: str = "",
    max_positions: int = MAX_POSITIONS,
    dropout: float = 0.1,
    pad: int = 0,
    bos: int = 1,
    eos: int = 2,
) -> CaptionerConfig:
    """A configuration of the bundled size; `grid` vectors a side enter the transformer."""
    vision = GitVisionConfig(
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=vision_layers,
        num_attention_heads=num_heads,
        image_size=image_size,
        patch_size=image_size // grid,
    )
    return CaptionerConfig(
        vision_config=vision.to_dict(),
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=max_positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
        input=input,
        stem_channels=stem_channels,
        token_vocab=token_vocab,
        token_dim=token_dim,
        token_grid=token_grid,
        num_queries=num_queries,
        norm_first=norm_first,
        image_tokenizer=image_tokenizer,
    )


def load_captioner(model_dir: Path) -> Captioner:
    """Read a captioner folder. InputError when it is not one."""
    if not (model_dir / "config.json").exists() or not (model_dir / "model.safetensors").exists():
        raise InputError(f"{model_dir}: no captioner there (config.json and model.safetensors are expected)")
    return Captioner.from_pretrained(model_dir, local_files_only=True).eval()


def copy_matching(target: Captioner, source: Captioner, skip: tuple[str, ...] = ()) -> list[str]:
    """Copy every weight of `source` that `target` has in the same shape; returns the names left as they were.

    skip: beginnings of names never copied, such as the embeddings of another vocabulary. Beginnings, because
    `output.` also stands inside every decoder layer's names.
    """
    weights, own = source.state_dict(), target.state_dict()
    left = []
    for name, value in own.items():
        if name in weights and weights[name].shape == value.shape and not name.startswith(skip):
            own[name] = weights[name]
        else:
            left.append(name)
    target.load_state_dict(own)
    return left
