"""Batched HuBERT equals unbatched HuBERT, for every kind of front end, and a stranger's codebook is refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HubertConfig, HubertModel

from pipeline.errors import InputError
from pipeline.speech import hubert
from pipeline.speech.hubert import BUNDLED, FAIRSEQ_CHUNK, SpeechEncoder, length_batches
from pipeline.speech.hubert_cpu import FourierConvolution
from pipeline.speech.kmeans import Codebook, fit_kmeans
from pipeline.speech.units import check_belongs, encode_units

KINDS = {
    "base": {"feat_extract_norm": "group"},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "25hz": {"feat_extract_norm": "group", "conv_pos_batch_norm": True},
}
# The wide ones have other arithmetic on a CPU (pipeline.speech.hubert_cpu).
FAMILIES = {kind: {**config, "conv_dim": [16] * 7} for kind, config in KINDS.items()} | {
    f"{kind}-wide": {**config, "conv_dim": [256] * 7} for kind, config in KINDS.items()
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **FAMILIES[request.param],
    )
    model = HubertModel(config)
    if model.encoder.pos_conv_embed.batch_norm is not None:
        # Fresh statistics would hide that batch norm moves the zeros behind an utterance's end.
        torch.nn.init.normal_(model.encoder.pos_conv_embed.batch_norm.bias)
        torch.nn.init.normal_(model.encoder.pos_conv_embed.batch_norm.running_mean)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return path


def noise(num_samples, seed=0):
    return (0.1 * np.random.default_rng([seed, num_samples]).standard_normal(num_samples)).astype(np.float32)


@pytest.mark.parametrize("normalize", [False, True])
def test_batched_equals_unbatched_and_transformers(folder, normalize):
    encoder = SpeechEncoder(folder, 2, normalize)
    waveforms = [noise(n) for n in (400, 719, 720, 16_000, 50_001)]
    waveforms += [np.zeros(9000, np.float32), np.sign(noise(12_345))]  # silence, clipping
    batched = encoder.encode(waveforms)
    reference = HubertModel.from_pretrained(folder).eval()
    for waveform, features in zip(waveforms, batched, strict=True):
        samples = torch.from_numpy(waveform)[None]
        if normalize:
            samples = torch.nn.functional.layer_norm(samples, samples.shape)
        with torch.inference_mode():
            alone = reference(samples, output_hidden_states=True).hidden_states[2][0]
        assert features.shape == alone.shape == (encoder.num_frames(len(waveform)), 32)
        assert float((features - alone).abs().max()) < 1e-4


def test_wide_encoders_have_their_own_arithmetic_on_a_cpu(folder):
    wide = min(HubertConfig.from_pretrained(folder).conv_dim) >= 256
    for precision, expected in (("fp32", wide), ("bf16", False)):
        layers = SpeechEncoder(folder, 2, precision=precision).model.modules()
        assert any(isinstance(layer, FourierConvolution) for layer in layers) is expected


@pytest.mark.parametrize("num_frames", [1, 127, 128, 129, 300])
def test_fourier_convolution_equals_the_direct_one(num_frames):
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(24, 16, 32, padding=16, groups=4)
    hidden = torch.randn(3, 24, num_frames)
    with torch.inference_mode():
        direct, ours = conv(hidden), FourierConvolution(conv)(hidden)
    assert direct.shape == ours.shape
    assert float((direct - ours).abs().max()) < 1e-5


def test_the_padding_of_transformers_would_change_features(folder):
    """The reason for this module: without it the test above would be about nothing."""
    reference = HubertModel.from_pretrained(folder).eval()
    if reference.config.feat_extract_norm != "group":
        pytest.skip("only group norm over time sees the padding")
    padded = torch.zeros(1, 32_000)
    padded[0, :16_000] = torch.from_numpy(noise(16_000))
    with torch.inference_mode():
        alone = reference(padded[:, :16_000]).last_hidden_state[0]
        mask = torch.zeros(1, 32_000, dtype=torch.long)
        mask[:, :16_000] = 1
        in_batch = reference(padded, attention_mask=mask).last_hidden_state[0][: len(alone)]
    assert float((in_batch - alone).norm() / alone.norm()) > 0.05


def codebook_of(encoder, num_units=20):
    return fit_kmeans(encoder.encode([noise(60_000)])[0].numpy(), num_units, seed=0, n_init=1)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(400, 30_000), min_size=1, max_size=6),
    kinds=st.lists(st.sampled_from(["noise", "silence", "clipped"]), min_size=6, max_size=6),
    budget=st.integers(400, 90_000),
)
def test_units_do_not_depend_on_the_batch(folder, lengths, kinds, budget):
    encoder = SpeechEncoder(folder, 2)
    make = {"noise": lambda w: w, "silence": np.zeros_like, "clipped": lambda w: np.sign(w)}
    waveforms = [make[kind](noise(n, seed=i)) for i, (n, kind) in enumerate(zip(lengths, kinds, strict=False))]
    codebook = codebook_of(encoder)
    alone = encode_units(waveforms, encoder, codebook, budget)
    assert [len(ids) for ids in alone] == [encoder.num_frames(n) for n in lengths]
    backwards = encode_units(waveforms[::-1], encoder, codebook, budget)[::-1]
    for one, two in zip(alone, backwards, strict=True):
        assert np.array_equal(one, two)
    for batch in length_batches(lengths, budget):
        for index, features in zip(batch, encoder.encode([waveforms[i] for i in batch]), strict=True):
            assert np.array_equal(codebook.assign(features.numpy()), alone[index])


def test_on_a_cpu_the_batch_is_held_to_the_cache():
    encoder = SpeechEncoder(BUNDLED, 1)
    lengths = [48_000] * 40
    assert max(map(len, encoder.batches(lengths, 24 * 16_000))) == 8
    assert max(map(len, encoder.batches(lengths, 10**9))) == 9
    encoder.model.config.conv_dim = [512] * 7
    assert max(map(len, encoder.batches(lengths, 10**9))) == 1


@pytest.mark.parametrize("normalize", [False, True])
def test_minutes_in_blocks_equal_transformers(folder, normalize):
    """35 s and 125 s: above the length at which convolutions run in blocks, statistics over the whole."""
    encoder = SpeechEncoder(folder, 2, normalize)
    reference = HubertModel.from_pretrained(folder).eval()
    is_wide = min(reference.config.conv_dim) >= 256  # and slow
    for num_samples in (35 * 16_000 + 123,) if is_wide else (35 * 16_000 + 123, 125 * 16_000):
        waveform = noise(num_samples) * np.linspace(0.1, 3, num_samples, dtype=np.float32)
        samples = torch.from_numpy(waveform)[None]
        if normalize:
            samples = torch.nn.functional.layer_norm(samples, samples.shape)
        with torch.inference_mode():
            alone = reference(samples, output_hidden_states=True).hidden_states[2][0]
        features = encoder.encode([waveform])[0]
        assert features.shape == (encoder.num_frames(num_samples), 32)
        assert float((features - alone).abs().max()) < 1e-4


@pytest.mark.parametrize("folder", KINDS, indirect=True)
@pytest.mark.parametrize("rest", [0, 399, 400, 20_000])
def test_fairseq_chunks(folder, rest):
    """fairseq's reader: normalise the whole, then 1.6 M samples at a time, each piece by itself."""
    encoder = SpeechEncoder(folder, 2, normalize=True, chunking="fairseq")
    waveform = noise(FAIRSEQ_CHUNK + rest) + 0.01
    features = encoder.encode([waveform, noise(5000)])[0]
    assert len(features) == encoder.num_frames(len(waveform))
    assert len(features) == 4999 + (max(0, rest - 400) // 320 + 1 if rest >= 400 else 0)
    samples = torch.from_numpy(waveform)[None]
    samples = torch.nn.functional.layer_norm(samples, samples.shape)
    reference = HubertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        pieces = [samples[:, :FAIRSEQ_CHUNK]] + ([samples[:, FAIRSEQ_CHUNK:]] if rest >= 400 else [])
        expected = torch.cat([reference(p, output_hidden_states=True).hidden_states[2][0] for p in pieces])
    assert float((features - expected).abs().max()) < 1e-4


def test_chunking_and_precision_are_facts_only_where_they_are_not_the_default(folder):
    assert "precision" not in SpeechEncoder(folder, 1).identity
    variant = SpeechEncoder(folder, 1, precision="bf16", chunking="fairseq").identity
    assert (variant["precision"], variant["chunking"]) == ("bf16", "fairseq")


def test_bf16_agrees_with_fp32_in_most_units(folder):
    full, half = SpeechEncoder(folder, 2), SpeechEncoder(folder, 2, precision="bf16")
    codebook = codebook_of(full)
    waveforms = [noise(n, seed=1) for n in (16_000, 40_000)]
    one, two = (np.concatenate(encode_units(waveforms, e, codebook, 10**6)) for e in (full, half))
    assert 0.5 < (one == two).mean() <= 1


def test_group_norm_at_once_equals_the_loop():
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(8, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    hidden, lengths = torch.randn(3, 8, 500) + 3, torch.tensor([500, 2, 137])
    with torch.inference_mode():
        loop = hubert.masked_group_norm(hidden, lengths, norm)
        assert torch.allclose(hubert._masked_group_norm_at_once(hidden, lengths, norm), loop, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision, least", [("fp32", 0.9999), ("bf16", 0.5), ("fp16", 0.5)])
def test_units_on_a_gpu_agree_with_the_cpu(folder, cuda, precision, least):
    own, other = SpeechEncoder(folder, 2), SpeechEncoder(folder, 2, device=cuda, precision=precision)
    waveforms = [noise(n, seed=2) for n in (400, 16_000, 50_001, 600_000)]
    codebook = codebook_of(own)
    one, two = (np.concatenate(encode_units(waveforms, e, codebook, 10**6)) for e in (own, other))
    assert (one == two).mean() >= least
    if precision == "fp32":
        together = other.encode(waveforms)
        for waveform, features in zip(waveforms, together, strict=True):
            assert float((features.cpu() - own.encode([waveform])[0]).abs().max()) < 1e-3


def test_batches_keep_the_budget_and_lose_nothing():
    lengths = [5, 100, 7, 100, 40, 3]
    batches = length_batches(lengths, 110)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 110 for batch in batches)


def test_too_short_and_not_finite_are_refused():
    encoder = SpeechEncoder(BUNDLED, 1)
    with pytest.raises(InputError, match="399 samples"):
        encoder.encode([noise(399)])
    with pytest.raises(InputError, match="finite"):
        encoder.encode([np.full(1000, np.nan, np.float32)])
    with pytest.raises(InputError, match="layer 99"):
        SpeechEncoder(BUNDLED, 99)


def test_a_codebook_of_another_encoder_is_refused_by_both_fingerprints(folder, tmp_path):
    stranger, own = SpeechEncoder(folder, 1), SpeechEncoder(BUNDLED, 2)
    codebook = Codebook(np.zeros((4, 32), np.float32), stranger.identity)
    with pytest.raises(InputError) as refusal:
        check_belongs(codebook, own, tmp_path / "codebook.safetensors")
    assert codebook.fingerprint in str(refusal.value) and own.fingerprint in str(refusal.value)


def test_bundled_encoder_says_what_it_is():
    config = json.loads((BUNDLED / "config.json").read_text())
    assert config["feat_extract_norm"] == "group" and (BUNDLED / "README.md").exists()
