"""ViT-VQGAN, SeiT and taming checkpoints: same codes, same pictures, hostile files refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.checkpoints.image_tokenizers import TokenizerSources, import_image_tokenizer
from pipeline.errors import InputError
from pipeline.vision.taming_vqgan import TamingVQGAN, TamingVQGANConfig
from pipeline.vision.tokenizer import load_tokenizer
from pipeline.vision.vit_vqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from tests.pipeline.checkpoints.hostile import WRAPPINGS, Payload

IMAGES = torch.from_numpy(np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32))


def vit() -> ViTVQGAN:
    torch.manual_seed(0)
    sizes = (TransformerConfig(32, 2, 2, 48), TransformerConfig(48, 1, 3, 64))
    return ViTVQGAN(ViTVQGANConfig(64, 8, *sizes, n_embed=50, embed_dim=16, resize="crop")).eval()


def taming() -> TamingVQGAN:
    torch.manual_seed(0)
    return TamingVQGAN(TamingVQGANConfig(64, 32, (1, 1, 2), 2, (2,), 48, 24, 70)).eval()


def taming_names(model: TamingVQGAN) -> dict[str, torch.Tensor]:
    return {name.replace("quantizer.", "quantize."): value for name, value in model.state_dict().items()}


class Encoding(torch.nn.Module):
    """How SeiT's pickled tokenizer may be built: a module around encoder and projection, other names."""

    def __init__(self, model: ViTVQGAN) -> None:
        super().__init__()
        self.vit = model.encoder
        self.project = model.pre_quant


def test_vit_vqgan_as_enhancing_transformers_saves_it(tmp_path: Path) -> None:
    model = vit()
    state = {**model.state_dict(), "loss.discriminator.0.weight": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 3, "callbacks": {}}, tmp_path / "imagenet_vitvq_base.ckpt")
    import_image_tokenizer(TokenizerSources(tmp_path / "imagenet_vitvq_base.ckpt"), tmp_path / "out")
    loaded = load_tokenizer(tmp_path / "out")
    assert isinstance(loaded, ViTVQGAN) and loaded.config.to_dict() == model.config.to_dict()
    assert loaded.fingerprint == model.fingerprint
    codes = loaded.encode_codes(IMAGES)
    assert torch.equal(codes, model.encode_codes(IMAGES))
    torch.testing.assert_close(loaded.decode_codes(codes), model.decode_codes(codes), atol=0, rtol=0)


@pytest.mark.parametrize("whole", [True, False])
def test_seit_tokenizer_and_its_own_codebook(tmp_path: Path, whole: bool) -> None:
    """A pickled module is read, not run; the centre of the grid is kept; the codebook stays as it is."""
    model = vit()
    torch.save(model if whole else Encoding(model), tmp_path / "tokenizer.ckpt")
    codebook = torch.randn(20, 16) * 3
    torch.save(codebook, tmp_path / "codebook.ckpt")
    sources = TokenizerSources(tmp_path / "tokenizer.ckpt", tmp_path / "codebook.ckpt", resize="squash", crop_tokens=6)
    # The module's class is of this test, which no checkpoint needs.
    with pytest.raises(InputError, match="asks for (tests|pipeline).*Nothing was run"):
        import_image_tokenizer(sources, tmp_path / "out")
    _rename_classes(tmp_path / "tokenizer.ckpt")
    import_image_tokenizer(sources, tmp_path / "out")
    loaded = load_tokenizer(tmp_path / "out")
    assert isinstance(loaded, ViTVQGAN)
    assert loaded.grid == (6, 6) and loaded.vocab_size == 20 and loaded.config.resize == "squash"
    with torch.inference_mode():
        z = torch.nn.functional.normalize(model.pre_quant(model.encoder(IMAGES)), dim=-1)
        distances = torch.cdist(z, torch.nn.functional.normalize(codebook, dim=-1)[None].expand(2, -1, -1))
    expected = distances.argmin(-1).unflatten(1, (8, 8))[:, 1:7, 1:7]
    assert torch.equal(loaded.encode_codes(IMAGES), expected)
    torch.testing.assert_close(loaded.quantizer.embedding.weight.data, codebook)
    assert not loaded.can_decode
    with pytest.raises(InputError, match="centre of its grid only"):
        loaded.decode_codes(expected)


def _rename_classes(path: Path) -> None:
    """As if the classes were enhancing's, as they are in the released file."""
    import re
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if name.endswith("data.pkl"):
                data = re.sub(rb"c(tests|pipeline)\.[a-z_.]+\n", b"cenhancing.modules.stage1\n", data)
            archive.writestr(name, data)


def test_seit_without_its_codebook_is_refused(tmp_path: Path) -> None:
    names = {name: value for name, value in vit().state_dict().items() if not name.startswith("quantizer")}
    torch.save(names, tmp_path / "tokenizer.ckpt")
    with pytest.raises(InputError, match="no codebook in it; give its file with --codebook"):
        import_image_tokenizer(TokenizerSources(tmp_path / "tokenizer.ckpt"), tmp_path / "out")


@pytest.mark.parametrize("with_yaml", [True, False])
def test_taming_vqgan(tmp_path: Path, with_yaml: bool) -> None:
    model = taming()
    state = {**taming_names(model), "loss.perceptual_loss.x": torch.zeros(2)}
    torch.save({"state_dict": state, "global_step": 5}, tmp_path / "last.ckpt")
    config = None
    if with_yaml:
        config = tmp_path / "model.yaml"
        config.write_text(yaml.safe_dump({"model": {"params": {"ddconfig": {"resolution": 64}, "n_embed": 70}}}))
    import_image_tokenizer(TokenizerSources(tmp_path / "last.ckpt", config=config, image_size=64), tmp_path / "out")
    loaded = load_tokenizer(tmp_path / "out")
    assert isinstance(loaded, TamingVQGAN) and loaded.config.to_dict() == model.config.to_dict()
    codes = loaded.encode_codes(IMAGES)
    assert codes.shape == (2, 16, 16) and torch.equal(codes, model.encode_codes(IMAGES))
    torch.testing.assert_close(loaded.decode_codes(codes), model.decode_codes(codes), atol=0, rtol=0)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("part", ["checkpoint", "codebook"])
def test_a_hostile_file_is_refused(tmp_path: Path, wrapping: str, part: str) -> None:
    torch.save(vit().state_dict(), tmp_path / "tokenizer.ckpt")
    WRAPPINGS[wrapping](tmp_path / "evil.ckpt", Payload(tmp_path / "ran"))
    files = {"checkpoint": tmp_path / "tokenizer.ckpt", part: tmp_path / "evil.ckpt"}
    with pytest.raises(InputError, match="Nothing was run"):
        import_image_tokenizer(TokenizerSources(**files), tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_other_networks_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"state_dict": {"encoder.x": torch.zeros(2)}}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="neither a ViT-VQGAN .* nor a taming VQGAN .*; found encoder.x"):
        import_image_tokenizer(TokenizerSources(tmp_path / "x.ckpt"), tmp_path / "out")
