"""VQGAN as taming-transformers publishes it: convolutions down to a grid of codes and back up.

Written from Esser et al. 2021 (arXiv 2012.09841) to the state-dict names of CompVis/taming-transformers, so
that `vqgan_imagenet_f16_{1024,16384}` fit. Pixels go in as [-1, 1] inside; the interface is that of
`vit_vqgan`: pictures in [0, 1], a grid of codes, a folder of `config.json` and `model.safetensors`. It is
used as it was trained; training it is taming-transformers' business.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.files import write_json
from pipeline.tensors import write_safetensors
from pipeline.vision.folder import load_folder
from pipeline.vision.transforms import Resize

MODEL_TYPE = "taming_vqgan"
_GROUPS, _EPS = 32, 1e-6


@dataclass(frozen=True)
class TamingVQGANConfig:
    """The keys of taming's `ddconfig` and model; `attn_levels` are the levels (0: full size) with attention."""

    image_size: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_levels: tuple[int, ...]
    z_channels: int
    embed_dim: int
    n_embed: int
    channels: int = 3
    resize: Resize = "crop"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image_size, self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens. ValueError when the picture cannot be halved often enough."""
        factor = 2 ** (len(self.ch_mult) - 1)
        if self.image_size % factor:
            raise ValueError(f"image_size {self.image_size} is no multiple of {factor}")
        return self.image_size // factor, self.image_size // factor

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TamingVQGANConfig":
        """The inverse of `to_dict`. TypeError when something is missing or unknown."""
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key != "model_type"}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"model_type": MODEL_TYPE, **asdict(self)}


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=_EPS)


class _ResBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(num_in), nn.Conv2d(num_in, num_out, 3, padding=1)
        self.norm2, self.conv2 = _norm(num_out), nn.Conv2d(num_out, num_out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if num_in == num_out else nn.Conv2d(num_in, num_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class _Attention(nn.Module):
    """One head over all places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        query, key, value = (part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Padded at the right and below only.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Blocks of one size, each followed by its attention where the level has any, then the change of size."""

    def __init__(self, num_in: int, num_out: int, num_blocks: int, has_attention: bool, change: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(_ResBlock(num_in if n == 0 else num_out, num_out) for n in range(num_blocks))
        self.attn = nn.ModuleList(_Attention(num_out) for _ in range(num_blocks if has_attention else 0))
        if change == "down":
            self.downsample = _Down(num_out)
        elif change == "up":
            self.upsample = _Up(num_out)
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        if self.change == "down":
            return self.downsample(x)
        return self.upsample(x) if self.change == "up" else x


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = _ResBlock(channels, channels), _Attention(channels)
        self.block_2 = _ResBlock(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Encoder(nn.Module):
    def __init__(self, config: TamingVQGANConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in (1, *config.ch_mult)]
        last = len(config.ch_mult) - 1
        self.conv_in = nn.Conv2d(config.channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            _Level(
                *(widths[n], widths[n + 1], config.num_res_blocks, n in config.attn_levels),
                change="" if n == last else "down",
            )
            for n in range(last + 1)
        )
        self.mid = _Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class _Decoder(nn.Module):
    def __init__(self, config: TamingVQGANConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        entering = [*widths[1:], widths[-1]]  # level n begins with what level n + 1 gives
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        self.up = nn.ModuleList(
            _Level(
                *(entering[n], widths[n], config.num_res_blocks + 1, n in config.attn_levels),
                change="up" if n else "",
            )
            for n in range(len(widths))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(cast(list[nn.Module], list(self.up))):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Quantizer(nn.Module):
    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)

    def lookup(self, z: torch.Tensor) -> torch.Tensor:
        """Nearest code of each vector [..., embed_dim] by Euclidean distance; ties go to the lower number."""
        codes = self.embedding.weight
        return (codes.square().sum(1) - 2 * z @ codes.T).argmin(dim=-1)


class TamingVQGAN(nn.Module):
    """Images float32 [batch, 3, height, width] in [0, 1], codes int64 [batch, rows, columns]."""

    can_decode = True

    def __init__(self, config: TamingVQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        self.quantizer = _Quantizer(config.n_embed, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.config.grid

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return self.config.n_embed

    @property
    def codebook(self) -> torch.Tensor:
        """The codes, float32 [n_embed, embed_dim], no gradient."""
        return self.quantizer.embedding.weight.detach()

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over weights and preprocessing; not over metadata or device."""
        digest = hashlib.sha256(f"{MODEL_TYPE}{self.config.image_sides}{self.config.resize}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Vectors before quantisation, [batch, rows * columns, embed_dim]."""
        return self.quant_conv(self.encoder(2 * images - 1)).flatten(2).transpose(1, 2)

    @torch.inference_mode()
    def encode_codes(self, images: torch.Tensor) -> torch.Tensor:
        """Code numbers, int64 [batch, rows, columns]."""
        return self.quantizer.lookup(self.encode(images)).unflatten(1, self.grid)

    @torch.inference_mode()
    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Images, not clipped to [0, 1], from code numbers [batch, rows, columns]."""
        vectors = self.quantizer.embedding(codes).permute(0, 3, 1, 2)
        return (self.decoder(self.post_quant_conv(vectors)) + 1) / 2

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`."""
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()}
        write_safetensors(folder / "model.safetensors", weights, {"fingerprint": self.fingerprint})
        write_json(folder / "config.json", self.config.to_dict())


def load_taming_vqgan(folder: Path, device: str | torch.device = "cpu") -> TamingVQGAN:
    """The tokenizer saved in `folder`, in evaluation mode. InputError when something is missing or misfit."""
    return load_folder(folder, MODEL_TYPE, lambda v: TamingVQGAN(TamingVQGANConfig.from_dict(v)), device)
