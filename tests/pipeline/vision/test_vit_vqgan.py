"""The image tokenizer: names and arithmetic of the original, exact codes, folders that read back."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.errors import InputError
from pipeline.files import write_json
from pipeline.vision.taming_vqgan import load_taming_vqgan
from pipeline.vision.transforms import image_to_tensor, tensor_to_image
from pipeline.vision.vit_vqgan import (
    TransformerConfig,
    ViTVQGAN,
    ViTVQGANConfig,
    load_vit_vqgan,
    sincos_positions,
)

TINY = ViTVQGANConfig(32, 8, TransformerConfig(32, 1, 2, 48), TransformerConfig(64, 2, 1, 80), 50, 8)


@pytest.fixture
def model() -> ViTVQGAN:
    torch.manual_seed(0)
    return ViTVQGAN(TINY).eval()


def layer(part: str, number: int, projected: bool = True) -> set[str]:
    at = f"{part}.transformer.layers.{number}"
    names = {f"{at}.{i}.norm.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    names |= {f"{at}.1.fn.net.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    names |= {f"{at}.0.fn.to_out.{kind}" for kind in ("weight", "bias")} if projected else set()
    return names | {f"{at}.0.fn.to_qkv.weight"}


def test_names_and_shapes_are_those_of_enhancing_transformers(model):
    both = {f"{m}.{k}" for m in ("pre_quant", "post_quant") for k in ("weight", "bias")}
    both |= {f"{part}.transformer.norm.{k}" for part in ("encoder", "decoder") for k in ("weight", "bias")}
    both |= {"encoder.to_patch_embedding.0.weight", "encoder.to_patch_embedding.0.bias"}
    both |= {"decoder.to_pixel.1.weight", "decoder.to_pixel.1.bias"}
    both |= {"encoder.en_pos_embedding", "decoder.de_pos_embedding", "quantizer.embedding.weight"}
    # One head as wide as the model needs no projection, in the original as here.
    both |= layer("encoder", 0) | layer("decoder", 0, False) | layer("decoder", 1, False)
    state = model.state_dict()
    assert set(state) == both
    assert state["encoder.en_pos_embedding"].shape == (1, 16, 32)
    assert state["encoder.to_patch_embedding.0.weight"].shape == (32, 3, 8, 8)
    assert state["encoder.transformer.layers.0.0.fn.to_qkv.weight"].shape == (3 * 128, 32)
    assert state["decoder.to_pixel.1.weight"].shape == (64, 3, 8, 8)
    assert state["quantizer.embedding.weight"].shape == (50, 8)


def test_positions_are_columns_first_then_rows():
    positions = sincos_positions(8, (2, 3))[0]
    column, row = 2, 1
    frequencies = torch.tensor([1.0, 0.01])
    expected = torch.cat(
        [f(torch.tensor(float(n)) * frequencies) for n in (column, row) for f in (torch.sin, torch.cos)]
    )
    torch.testing.assert_close(positions[row * 3 + column], expected)


def test_the_encoder_is_the_written_formula(model):
    """The first layer by hand: patches, positions, softmax attention of two heads of 64, tanh."""
    s = model.state_dict()
    images = torch.rand(2, 3, 32, 32)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, -1)
    embed = "encoder.to_patch_embedding.0"
    x = patches @ s[f"{embed}.weight"].flatten(1).T + s[f"{embed}.bias"] + s["encoder.en_pos_embedding"]
    at = "encoder.transformer.layers.0"

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(y, (32,), s[f"{name}.weight"], s[f"{name}.bias"])

    query, key, value = (norm(f"{at}.0.norm", x) @ s[f"{at}.0.fn.to_qkv.weight"].T).chunk(3, dim=-1)
    heads = []
    for h in (slice(0, 64), slice(64, 128)):
        weights = (query[..., h] @ key[..., h].transpose(1, 2) / 8).softmax(-1)
        heads.append(weights @ value[..., h])
    x = x + torch.cat(heads, -1) @ s[f"{at}.0.fn.to_out.weight"].T + s[f"{at}.0.fn.to_out.bias"]
    hidden = torch.tanh(norm(f"{at}.1.norm", x) @ s[f"{at}.1.fn.net.0.weight"].T + s[f"{at}.1.fn.net.0.bias"])
    x = norm("encoder.transformer.norm", x + hidden @ s[f"{at}.1.fn.net.2.weight"].T + s[f"{at}.1.fn.net.2.bias"])
    z = x @ s["pre_quant.weight"].T + s["pre_quant.bias"]
    distances = torch.cdist(F.normalize(z, dim=-1), F.normalize(s["quantizer.embedding.weight"], dim=-1))
    assert torch.equal(model.encode_codes(images).flatten(1), distances.argmin(-1))
    torch.testing.assert_close(model.encode(images), F.normalize(z, dim=-1), atol=1e-5, rtol=1e-4)


def test_codes_do_not_depend_on_the_batch(model):
    images = torch.rand(13, 3, 32, 32)
    together = model.encode_codes(images)
    assert together.shape == (13, 4, 4) and together.dtype == torch.int64
    assert torch.equal(together, torch.cat([model.encode_codes(i[None]) for i in images]))


def test_decoding_codes_is_what_training_sees(model):
    images = torch.rand(3, 3, 32, 32)
    rebuilt, loss, codes = model(images)
    torch.testing.assert_close(rebuilt, model.decode_codes(codes.unflatten(1, (4, 4))), atol=1e-5, rtol=1e-4)
    e, z = model.codebook[codes], model.encode(images)
    torch.testing.assert_close(loss, 1.25 * (e - z).square().mean())
    loss.backward()
    assert model.quantizer.embedding.weight.grad is not None and model.pre_quant.weight.grad is not None


def test_a_saved_folder_reads_back_the_same(model, tmp_path):
    model.save(tmp_path / "a", {"note": "x"})
    again = load_vit_vqgan(tmp_path / "a")
    assert again.fingerprint == model.fingerprint and again.config.metadata == {"note": "x"}
    again.save(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with torch.no_grad():
        again.post_quant.bias += 1
    assert again.fingerprint != model.fingerprint


def test_oblong_pictures():
    config = dataclasses.replace(TINY, image_size=(16, 48), patch_size=(8, 16))
    model = ViTVQGAN(ViTVQGANConfig.from_dict(config.to_dict()))
    assert model.encode_codes(torch.rand(1, 3, 16, 48)).shape == (1, 2, 3)
    assert model.decode_codes(torch.zeros(1, 2, 3, dtype=torch.int64)).shape == (1, 3, 16, 48)


def test_wrong_folders_are_refused_by_name(model, tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_vit_vqgan(tmp_path)
    model.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="not readable as safetensors"):
        load_vit_vqgan(tmp_path)
    ViTVQGAN(dataclasses.replace(TINY, n_embed=51)).save(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="do not fit"):
        load_vit_vqgan(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: no such file"):
        load_vit_vqgan(tmp_path)
    with pytest.raises(InputError, match="model_type is 'vit_vqgan', not 'taming_vqgan'"):
        load_taming_vqgan(tmp_path)
    for load, kind in ((load_vit_vqgan, "vit_vqgan"), (load_taming_vqgan, "taming_vqgan")):
        write_json(tmp_path / "config.json", {"model_type": kind, "image_size": 16, "n_embed": "many"})
        with pytest.raises(InputError, match=f"not the config of a {kind}"):
            load(tmp_path)


def test_pictures_become_squares_by_squashing_or_cropping():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    image = Image.fromarray(pixels)
    crop = image_to_tensor(image, 20, "crop")
    assert crop.shape == (3, 20, 20) and crop.dtype == torch.float32 and float(crop.min()) > 0.9
    squash = image_to_tensor(image, 20)
    assert float(squash[:, :, 0].max()) < 0.1 and float(squash[:, :, 10].min()) > 0.9
    assert image_to_tensor(Image.new("L", (5, 9), 255), (4, 6)).shape == (3, 4, 6)
    assert np.array_equal(np.asarray(tensor_to_image(image_to_tensor(image, (20, 60)))), pixels)
    with pytest.raises(ValueError, match="stretch"):
        image_to_tensor(image, 20, "stretch")
