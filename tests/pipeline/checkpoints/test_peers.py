"""Against the originals: random weights saved by the original code in its own format, imported, and compared.

Needs an environment with fairseq, taming-transformers, enhancing-transformers and SeiT's reader beside ours
(docs/parity.md says how to make one); each test is passed over where its package is missing.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoints.hubert import import_hubert
from pipeline.checkpoints.image_tokenizers import TokenizerSources, import_image_tokenizer
from pipeline.checkpoints.vocoder import import_vocoder
from pipeline.files import write_json
from pipeline.manifest import Caption, Image, Row, read_split, write_splits
from pipeline.speech.hubert import SpeechEncoder
from pipeline.speech.kmeans import Codebook
from pipeline.tokens.parts import ImagesPart, write_images_part
from pipeline.tokens.seit import export_images, open_archive
from pipeline.vision.tokenizer import load_tokenizer
from tests.pipeline.checkpoints.test_vocoder import CONFIG

pytestmark = pytest.mark.peer


def say(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The measured difference, for the table in docs/parity.md (`pytest -m peer -s`)."""
    difference = float((ours - theirs).abs().max())
    print(f"\nparity: {name}: {difference:.1e} of values up to {float(theirs.abs().max()):.2g}")
    assert difference <= 1e-4


def shake(module: torch.nn.Module, scale: float = 0.03) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", ["base", "large", "batch norm"])
def test_hubert_of_fairseq(tmp_path: Path, kind: str) -> None:
    hubert = pytest.importorskip("fairseq.models.hubert.hubert")
    from fairseq.data.dictionary import Dictionary
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    cfg = hubert.HubertConfig(encoder_layers=3, encoder_embed_dim=128, encoder_ffn_embed_dim=256, final_dim=32)
    cfg.encoder_attention_heads, cfg.label_rate = 2, 50.0
    if kind == "large":
        cfg.extractor_mode, cfg.layer_norm_first = hubert.EXTRACTOR_MODE_CHOICES("layer_norm"), True
    if kind == "batch norm":  # mHuBERT at 25 Hz: an eighth convolution, batch norm before the positional one
        cfg.conv_pos_batch_norm, cfg.label_rate = True, 25.0
        cfg.conv_feature_layers = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 3"
    task = HubertPretrainingConfig(data="/none", normalize=kind == "large")
    dictionary = Dictionary()
    for unit in range(20):
        dictionary.add_symbol(str(unit))
    model = hubert.HubertModel(cfg, task, [dictionary])
    shake(model)
    if kind == "batch norm":
        model.encoder.pos_conv[0].running_mean.normal_()
        model.encoder.pos_conv[0].running_var.uniform_(0.5, 2)
    model.eval()
    containers = {
        name: OmegaConf.to_container(OmegaConf.structured(value), enum_to_str=True, throw_on_missing=False)
        for name, value in (("model", cfg), ("task", task))
    }
    state = {"args": None, "cfg": containers, "model": model.state_dict(), "task_state": {"dictionaries": [dictionary]}}
    torch.save(state, tmp_path / "hubert.pt")
    found = import_hubert(tmp_path / "hubert.pt", tmp_path / "out")
    assert found.normalize == (kind == "large")
    waveforms = [np.random.default_rng(n).normal(0, 0.1, 16000 * (n + 1)).astype(np.float32) for n in range(3)]
    for layer in (1, 2, 3):
        encoder = SpeechEncoder(tmp_path / "out", layer, normalize=kind == "large")
        batched = encoder.encode(waveforms)
        for waveform, ours in zip(waveforms, batched, strict=True):
            source = torch.from_numpy(waveform)[None]
            if kind == "large":
                source = torch.nn.functional.layer_norm(source, source.shape)
            with torch.inference_mode():
                theirs = model.extract_features(source, padding_mask=None, mask=False, output_layer=layer)[0][0]
                if kind == "large" and layer == cfg.encoder_layers:
                    # fairseq leaves its last norm out when a layer is asked for by number, even the last.
                    with torch.inference_mode():
                        theirs = model.encoder.layer_norm(theirs)
            say(f"HuBERT {kind}, layer {layer}, {len(waveform) // 16000} s", ours, theirs)
            codes = Codebook(theirs[:: max(1, len(theirs) // 40)][:40].numpy().copy())
            np.testing.assert_array_equal(codes.assign(ours.numpy()), codes.assign(theirs.numpy()))


@pytest.mark.parametrize("predict", [False, True])
@pytest.mark.parametrize("speakers", [False, True])
def test_unit_hifigan_of_fairseq(tmp_path: Path, speakers: bool, predict: bool) -> None:
    peer = pytest.importorskip("fairseq.models.text_to_speech.codehifigan")
    config: dict[str, Any] = {**CONFIG, **({"multispkr": "_", "model_in_dim": 256} if speakers else {})}
    torch.manual_seed(0)
    theirs = peer.CodeGenerator(config).eval()
    shake(theirs)
    torch.save({"generator": theirs.state_dict()}, tmp_path / "g_00500000")
    write_json(tmp_path / "config.json", config)
    vocoder = import_vocoder(tmp_path / "g_00500000", tmp_path / "config.json", tmp_path / "out")
    units = torch.randint(0, 100, (40,))
    given = {"spkr": torch.tensor([[3]])} if speakers else {}
    with torch.inference_mode():
        expected = theirs(code=units[None], dur_prediction=predict, **given)[0, 0]
    durations = None if predict else [np.ones(40, np.int64)]
    ours = vocoder.synthesize([units.numpy()], durations, speaker=3 if speakers else None)[0]
    kind = f"{'200 speakers' if speakers else 'one speaker'}, {'predicted' if predict else 'given'} durations"
    say(f"unit HiFi-GAN, {kind}", torch.from_numpy(ours), expected.clamp(-1, 1))


def test_vqgan_of_taming(tmp_path: Path) -> None:
    parts = pytest.importorskip("taming.modules.diffusionmodules.model")
    from taming.modules.vqvae.quantize import VectorQuantizer2

    torch.manual_seed(0)
    settings = {
        "ch": 32,
        "out_ch": 3,
        "ch_mult": (1, 1, 2, 2, 4),
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "in_channels": 3,
        "resolution": 256,
        "z_channels": 64,
        "double_z": False,
    }
    theirs = torch.nn.Module()
    theirs.encoder, theirs.decoder = parts.Encoder(**settings), parts.Decoder(**settings)
    theirs.quantize = VectorQuantizer2(1024, 64, beta=0.25)
    theirs.quant_conv, theirs.post_quant_conv = torch.nn.Conv2d(64, 64, 1), torch.nn.Conv2d(64, 64, 1)
    shake(theirs)
    theirs.eval()
    images = torch.rand(2, 3, 256, 256)
    with torch.inference_mode():
        hidden = theirs.quant_conv(theirs.encoder(2 * images - 1))
        # Codes near the vectors, so that each of them is somebody's nearest.
        vectors = hidden.flatten(2).transpose(1, 2).reshape(-1, 64)
        theirs.quantize.embedding.weight.copy_(vectors[torch.randint(0, len(vectors), (1024,))])
        quantized, _, (_, _, indices) = theirs.quantize(hidden)
        rebuilt = theirs.decoder(theirs.post_quant_conv(quantized))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "last.ckpt")
    import_image_tokenizer(TokenizerSources(tmp_path / "last.ckpt"), tmp_path / "out")
    ours = load_tokenizer(tmp_path / "out")
    codes = ours.encode_codes(images)
    assert codes.shape == (2, 16, 16) and len(codes.unique()) > 100
    assert torch.equal(codes.flatten(), indices.flatten())
    say("taming VQGAN f16, pictures from codes", ours.decode_codes(codes), (rebuilt + 1) / 2)


def test_vit_vqgan_of_enhancing_transformers(tmp_path: Path) -> None:
    layers = pytest.importorskip("enhancing.modules.stage1.layers")
    quantizers = pytest.importorskip("enhancing.modules.stage1.quantizers")

    torch.manual_seed(0)
    small = {"image_size": 64, "patch_size": 8, "dim": 128, "depth": 2, "heads": 2, "mlp_dim": 256}
    theirs = torch.nn.Module()
    theirs.encoder = layers.ViTEncoder(**small)
    theirs.decoder = layers.ViTDecoder(**small)
    theirs.quantizer = quantizers.VectorQuantizer(32, 500)
    theirs.pre_quant, theirs.post_quant = torch.nn.Linear(128, 32), torch.nn.Linear(32, 128)
    theirs.encoder.en_pos_embedding.requires_grad_(False)
    shake(theirs)
    theirs.eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        quantized, _, indices = theirs.quantizer(theirs.pre_quant(theirs.encoder(images)))
        rebuilt = theirs.decoder(theirs.post_quant(quantized))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "vit.ckpt")
    import_image_tokenizer(TokenizerSources(tmp_path / "vit.ckpt"), tmp_path / "out")
    ours = load_tokenizer(tmp_path / "out")
    codes = ours.encode_codes(images)
    assert len(codes.unique()) > 5
    assert torch.equal(codes.flatten(1), indices.view(3, -1))
    say("ViT-VQGAN, pictures from codes", ours.decode_codes(codes), rebuilt)


def test_archives_of_seit(tmp_path: Path) -> None:
    """An archive that we wrote, read by SeiT's own functions and by ours."""
    theirs = pytest.importorskip("seit_reader")

    captions = [Caption(f"c{n}", "a.wav", 1, 1, "0" * 64, "", "") for n in range(20)]
    rows = [Row(f"k{n}", Image(f"{n}.jpg", 256, 256, "0" * 64), (captions[n],)) for n in range(20)]
    write_splits(tmp_path / "manifests", {"train": rows}, rows_per_shard=20, seed=0)
    tokens = np.random.default_rng(0).integers(510, size=(20, 32, 32)).astype(np.uint16)
    keys = np.array([row.key for row in read_split(tmp_path / "manifests", "train")])
    write_images_part(tmp_path / "images/train/00000.npz", ImagesPart(keys, tokens))
    data, index, names = export_images(tmp_path / "manifests", tmp_path / "images", "train", tmp_path / "out")
    archive = theirs.load_from_gz(data, index)
    with open_archive(data, names, tmp_path / "unpacked") as ours:
        for number in range(20):
            expected = tokens[number].flatten()
            np.testing.assert_array_equal(theirs.get_data_index_of(*archive, number), expected)
            np.testing.assert_array_equal(ours.entry(number), expected)
