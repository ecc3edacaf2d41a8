"""ViT-VQGAN, the image tokenizer: pixels -> a grid of code numbers -> pixels.

Written from the description of Yu et al. 2021 (arXiv 2110.04627) to the architecture and state-dict names of
enhancing-transformers (thuanz123/enhancing-transformers), so that its released checkpoints fit: heads of 64,
tanh in the feed-forward part, normalisation before each part, frozen sine-cosine positions with the column
first, no class token, codes looked up and passed on L2-normalised.

A saved tokenizer is a folder of `config.json` and `model.safetensors`.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from pipeline.errors import InputError
from pipeline.files import atomic_path, write_json
from pipeline.vision.folder import load_folder
from pipeline.vision.transforms import Resize

DIM_HEAD = 64
MODEL_TYPE = "vit_vqgan"


@dataclass(frozen=True)
class TransformerConfig:
    """An encoder or decoder: width, layers, heads (of 64 each) and width of the feed-forward part."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int


@dataclass(frozen=True)
class ViTVQGANConfig:
    """What the weights need to make sense; sides are (height, width) or one number for both.

    decoder: None for a tokenizer that only encodes. crop_tokens: keep the centre of the grid, this many tokens a
    side, as SeiT's models take 28 of 32; 0 keeps all.
    """

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    encoder: TransformerConfig
    decoder: TransformerConfig | None
    n_embed: int
    embed_dim: int = 32
    channels: int = 3
    resize: Resize = "squash"
    metadata: dict[str, Any] = field(default_factory=dict)
    crop_tokens: int = 0

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return _sides(self.image_size)

    @property
    def patch_sides(self) -> tuple[int, int]:
        """Height and width of a token's pixels."""
        return _sides(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens. ValueError when patches do not tile the picture."""
        (height, width), (rows, columns) = self.image_sides, self.patch_sides
        if height % rows or width % columns:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        return height // rows, width // columns

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ViTVQGANConfig":
        """The inverse of `to_dict`. TypeError or KeyError when something is missing or unknown."""
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        values.pop("model_type", None)
        for part in ("encoder", "decoder"):
            values[part] = None if values[part] is None else TransformerConfig(**values[part])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"model_type": MODEL_TYPE, **asdict(self)}


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def sincos_positions(dim: int, grid: tuple[int, int]) -> torch.Tensor:
    """Fixed positions [1, rows * columns, dim]: column then row, each as sines then cosines."""
    if dim % 4:
        raise ValueError(f"dim {dim} is no multiple of 4")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    halves = [part for angle in angles for part in (angle.sin(), angle.cos())]
    return torch.cat(halves, dim=1).float()[None]


# The module classes below are shaped by the key names they must produce: `norm` and `fn` of a normalised
# part, `net.0` and `net.2` of the feed-forward part, `to_patch_embedding.0`, `to_pixel.1`.


class _PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(self.norm(x))


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * DIM_HEAD
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        # The original leaves the projection out when it would change nothing of the shape for one head.
        self.to_out = nn.Identity() if heads == 1 and dim == DIM_HEAD else nn.Linear(inner, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        qkv = self.to_qkv(x).view(batch, length, 3, self.heads, DIM_HEAD)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(mixed.transpose(1, 2).reshape(batch, length, -1))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class _Transformer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _PreNorm(dim, _Attention(dim, config.heads)),
                    _PreNorm(dim, _FeedForward(dim, config.mlp_dim)),
                ]
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            for part in cast(nn.ModuleList, layer):
                x = x + part(x)
        return self.norm(x)


class _Encoder(nn.Module):
    def __init__(self, config: ViTVQGANConfig) -> None:
        super().__init__()
        dim, patch = config.encoder.dim, config.patch_sides
        self.to_patch_embedding = nn.Sequential(nn.Conv2d(config.channels, dim, patch, stride=patch))
        self.en_pos_embedding = nn.Parameter(sincos_positions(dim, config.grid), requires_grad=False)
        self.transformer = _Transformer(config.encoder)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.to_patch_embedding(images).flatten(2).transpose(1, 2)
        return self.transformer(patches + self.en_pos_embedding)


class _Decoder(nn.Module):
    def __init__(self, config: ViTVQGANConfig, layers: TransformerConfig) -> None:
        super().__init__()
        dim, patch = layers.dim, config.patch_sides
        self.de_pos_embedding = nn.Parameter(sincos_positions(dim, config.grid), requires_grad=False)
        self.transformer = _Transformer(layers)
        self.to_pixel = nn.Sequential(
            nn.Unflatten(2, config.grid), nn.ConvTranspose2d(dim, config.channels, patch, stride=patch)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.transformer(tokens + self.de_pos_embedding)
        return self.to_pixel(x.transpose(1, 2))


class _Quantizer(nn.Module):
    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)

    def normalized(self) -> torch.Tensor:
        return F.normalize(self.embedding.weight, dim=-1)

    def lookup(self, z: torch.Tensor) -> torch.Tensor:
        # Between unit vectors the nearest is the one with the largest inner product.
        return (z @ self.normalized().T).argmax(dim=-1)


class ViTVQGAN(nn.Module):
    """Images float32 [batch, 3, height, width] in [0, 1], codes int64 [batch, rows, columns]."""

    def __init__(self, config: ViTVQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = None if config.decoder is None else _Decoder(config, config.decoder)
        self.quantizer = _Quantizer(config.n_embed, config.embed_dim)
        self.pre_quant = nn.Linear(config.encoder.dim, config.embed_dim)
        self.post_quant = None if config.decoder is None else nn.Linear(config.embed_dim, config.decoder.dim)
        self.apply(_initialise)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        crop = self.config.crop_tokens
        return (crop, crop) if crop else self.config.grid

    @property
    def can_decode(self) -> bool:
        """Whether pictures can be made of its tokens."""
        return self.decoder is not None and not self.config.crop_tokens

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return self.config.n_embed

    @property
    def codebook(self) -> torch.Tensor:
        """The codes as decoding uses them, L2-normalised: float32 [n_embed, embed_dim], no gradient."""
        return self.quantizer.normalized().detach()

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over weights and preprocessing; not over metadata or device."""
        digest = hashlib.sha256(f"{self.config.image_sides}{self.config.patch_sides}{self.config.resize}".encode())
        if self.config.crop_tokens:
            digest.update(f"{self.config.crop_tokens}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """L2-normalised vectors before quantisation, [batch, rows * columns, embed_dim]."""
        return F.normalize(self.pre_quant(self.encoder(images)), dim=-1)

    def decode(self, vectors: torch.Tensor) -> torch.Tensor:
        """Images, not clipped to [0, 1], from unit vectors [batch, rows * columns, embed_dim]."""
        if self.decoder is None or self.post_quant is None:
            raise InputError("image tokenizer: it was imported without a decoder; it encodes only")
        return self.decoder(self.post_quant(vectors))

    @torch.inference_mode()
    def encode_codes(self, images: torch.Tensor) -> torch.Tensor:
        """Code numbers, int64 [batch, rows, columns]."""
        codes = self.quantizer.lookup(self.encode(images)).unflatten(1, self.config.grid)
        top, left = ((whole - kept) // 2 for whole, kept in zip(self.config.grid, self.grid, strict=True))
        return codes[:, top : top + self.grid[0], left : left + self.grid[1]]

    @torch.inference_mode()
    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Images, not clipped to [0, 1], from code numbers [batch, rows, columns]; InputError unless `can_decode`."""
        if self.config.crop_tokens:
            raise InputError("image tokenizer: it keeps the centre of its grid only, so it cannot rebuild pictures")
        return self.decode(F.normalize(self.quantizer.embedding(codes.flatten(1)), dim=-1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For training: reconstruction with straight-through codes, codebook loss, codes [batch, n].

        The codebook loss is 0.25 ||sg(e) - z||^2 + ||e - sg(z)||^2 on unit vectors, averaged over elements.
        """
        passed, loss, codes = self.quantize(self.encode(images))
        return self.decode(passed), loss, codes

    def quantize(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Straight-through codes of unit vectors [batch, n, embed_dim], codebook loss as in `forward`, code numbers."""
        codes = self.quantizer.lookup(z.detach())
        e = F.normalize(self.quantizer.embedding(codes), dim=-1)
        loss = 0.25 * F.mse_loss(z, e.detach()) + F.mse_loss(e, z.detach())
        return z + (e - z).detach(), loss, codes

    def save(self, folder: Path, metadata: dict[str, Any] | None = None) -> None:
        """Write `config.json` and `model.safetensors` into `folder`; `metadata` replaces the config's own."""
        values = self.config.to_dict()
        if metadata is not None:
            values["metadata"] = metadata
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_path(folder / "model.safetensors") as temporary:
            # One key only: safetensors writes several in an order that changes from call to call.
            temporary.write_bytes(save(weights, metadata={"fingerprint": self.fingerprint}))
        write_json(folder / "config.json", values)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))


def load_vit_vqgan(folder: Path, device: str | torch.device = "cpu") -> ViTVQGAN:
    """The tokenizer saved in `folder`, in evaluation mode. InputError when something is missing or misfit."""
    # The original's checkpoints carry their losses' networks too.
    return load_folder(folder, MODEL_TYPE, lambda v: ViTVQGAN(ViTVQGANConfig.from_dict(v)), device, ("loss.",))
