"""GIT as a starting point, and the paper's captioners: same logits as transformers and as timm's formulas."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GitConfig, GitForCausalLM

from pipeline.captioner.generation import generate_units
from pipeline.captioner.model import clip_normalize, load_captioner
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.checkpoints.captioner import ImageUnits, import_captioner
from pipeline.errors import InputError
from pipeline.tensors import write_safetensors
from tests.pipeline.checkpoints.hostile import WRAPPINGS, Payload

VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}


def git(vocab: int = 203, image_size: int = 32, **vision: Any) -> GitForCausalLM:
    torch.manual_seed(0)
    config = GitConfig(
        vision_config={**VISION, "image_size": image_size, "patch_size": 16, **vision},
        vocab_size=vocab,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=80,
        max_position_embeddings=48,
        bos_token_id=101,
        eos_token_id=102,
        tie_word_embeddings=False,
    )
    model = GitForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


IDS = torch.tensor([[101, 5, 7, 150, 33], [101, 9, 9, 101, 2]])


def test_a_git_folder_becomes_a_start(tmp_path: Path) -> None:
    model = git(vocab=300)
    model.save_pretrained(tmp_path / "git-base")
    import_captioner(tmp_path / "git-base", tmp_path / "out")
    loaded = load_captioner(tmp_path / "out")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(input_ids=IDS, pixel_values=clip_normalize(pixels)).logits
        torch.testing.assert_close(loaded(input_ids=IDS, pixel_values=pixels).logits, expected, atol=1e-5, rtol=0)
    assert loaded.config.input == "pixels" and loaded.config.image_resize == "crop"
    assert not (tmp_path / "out/unit_vocabulary.json").exists()


def test_the_released_pixel_captioner(tmp_path: Path) -> None:
    """Words and output tied by hand, as the reference does: both must come back (transformers 5 loses one)."""
    model = git()
    model.git.embeddings.word_embeddings.weight = model.output.weight
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    state["model.git.embeddings.position_ids"] = torch.arange(48)[None]
    torch.save({"state_dict": state}, tmp_path / "Im_Sp.ckpt")
    import_captioner(tmp_path / "Im_Sp.ckpt", tmp_path / "out", units_fingerprint="abc")
    loaded = load_captioner(tmp_path / "out")
    torch.testing.assert_close(loaded.output.weight, model.output.weight)
    torch.testing.assert_close(loaded.git.embeddings.word_embeddings.weight, model.output.weight)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(input_ids=IDS, pixel_values=clip_normalize(pixels)).logits
        torch.testing.assert_close(loaded(input_ids=IDS, pixel_values=pixels).logits, expected, atol=1e-5, rtol=0)
    vocabulary = UnitVocabulary.load(tmp_path / "out/unit_vocabulary.json")
    assert (vocabulary.layout, vocabulary.num_units, vocabulary.codebook_fingerprint) == ("released", 200, "abc")
    assert vocabulary.encode([99, 100, 101, 199]) == [100, 101, 104, 202]
    units = generate_units(loaded, vocabulary, pixels, max_length=20)
    out = model.generate(
        pixel_values=clip_normalize(pixels), max_new_tokens=20, bos_token_id=101, eos_token_id=102, pad_token_id=0
    )
    for row, found in zip(out[:, 1:].tolist(), units, strict=True):
        spoken = vocabulary.decode(row)
        assert found.tolist() == [unit for i, unit in enumerate(spoken) if i == 0 or unit != spoken[i - 1]]


def timm_vit(state: dict[str, torch.Tensor], x: torch.Tensor, heads: int) -> torch.Tensor:
    """A ViT as timm names and computes it (pre-norm, fused qkv, exact GELU, eps 1e-6), written from its formulas."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=2, padding=1)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for n in range(2):
        batch, length, width = x.shape
        q, k, v = (
            linear(norm(x, f"blocks.{n}.norm1"), f"blocks.{n}.attn.qkv")
            .view(batch, length, 3, heads, width // heads)
            .permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).reshape(batch, length, width), f"blocks.{n}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{n}.norm2"), f"blocks.{n}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{n}.mlp.fc2")
    return x


def timm_state(grid: int = 4) -> dict[str, torch.Tensor]:
    shapes = {"cls_token": (1, 1, 64), "pos_embed": (1, grid * grid + 1, 64), "patch_embed.proj.weight": (64, 8, 4, 4)}
    shapes |= {"patch_embed.proj.bias": (64,), "norm.weight": (64,), "norm.bias": (64,), "head.weight": (10, 64)}
    for n in range(2):
        inner = {"attn.qkv": (192, 64), "attn.proj": (64, 64), "mlp.fc1": (96, 64), "mlp.fc2": (64, 96)}
        for name, shape in {**inner, "norm1": (64,), "norm2": (64,)}.items():
            shapes[f"blocks.{n}.{name}.weight"], shapes[f"blocks.{n}.{name}.bias"] = shape, shape[:1]
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def image_unit_checkpoint(folder: Path, grid: int = 4) -> tuple[dict[str, torch.Tensor], torch.Tensor, ImageUnits]:
    """(timm's part, the codebook, its folder); writes `Im_unit_Sp.ckpt` and `vqgan/`."""
    tower = timm_state(grid)
    state = {f"model.git.image_encoder.vision_model.{name}": value for name, value in tower.items()}
    for name, value in git(image_size=16 * grid).state_dict().items():
        if "image_encoder" not in name:
            state[f"model.{name}"] = value
    state["tokenizer.encoder.x"] = torch.zeros(3)
    torch.save({"state_dict": state}, folder / "Im_unit_Sp.ckpt")
    codebook = torch.randn(30, 8) * 2
    write_safetensors(folder / "vqgan/model.safetensors", {"quantizer.embedding.weight": codebook.numpy()})
    return tower, codebook, ImageUnits(folder / "vqgan", "feed", (2 * grid, 2 * grid))


def test_the_released_image_unit_captioner(tmp_path: Path) -> None:
    tower, codebook, units = image_unit_checkpoint(tmp_path)
    model = import_captioner(tmp_path / "Im_unit_Sp.ckpt", tmp_path / "out", tokenizer=units)
    loaded = load_captioner(tmp_path / "out")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 30, (2, 1, 8, 8)))
    with torch.inference_mode():
        found = loaded.git.image_encoder(tokens).last_hidden_state
        expected = timm_vit(tower, codebook[tokens[:, 0]].permute(0, 3, 1, 2), heads=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    # The decoder behind it is GIT's own.
    reference = git(image_size=64)
    with torch.inference_mode():
        reference.git.image_encoder.forward = lambda *_, **__: type("Out", (), {"last_hidden_state": expected})()
        logits = reference(input_ids=IDS, pixel_values=torch.zeros(2, 3, 64, 64)).logits
        torch.testing.assert_close(loaded(input_ids=IDS, pixel_values=tokens).logits, logits, atol=1e-4, rtol=0)
    assert loaded.config.image_tokenizer == "feed" and model.config.token_grid == (8, 8)


def test_image_units_need_their_codebook_and_grid(tmp_path: Path) -> None:
    _, _, units = image_unit_checkpoint(tmp_path)
    with pytest.raises(InputError, match="needs their codebook: `im2speech import vqgan"):
        import_captioner(tmp_path / "Im_unit_Sp.ckpt", tmp_path / "out")
    wrong = ImageUnits(units.folder, "feed", (32, 32))
    with pytest.raises(InputError, match="looks at 8 x 8 tokens, .* gives 32 x 32.*--crop-tokens 8"):
        import_captioner(tmp_path / "Im_unit_Sp.ckpt", tmp_path / "out", tokenizer=wrong)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_hostile_file_is_refused(tmp_path: Path, wrapping: str, kind: str) -> None:
    git().save_pretrained(tmp_path / "git")
    (tmp_path / "git/model.safetensors").unlink()
    evil = tmp_path / "git/pytorch_model.bin"
    WRAPPINGS[wrapping](evil, Payload(tmp_path / "ran"))
    with pytest.raises(InputError, match="Nothing was run"):
        import_captioner(evil if kind == "file" else evil.parent, tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
