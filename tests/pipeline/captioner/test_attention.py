"""Fused attention and the image-first way: equal to transformers' own GIT, forward, loss, gradients, cache, padding."""

import pytest
import torch
from torch.nn import functional

from pipeline.captioner.attention import FusedSelfAttention
from pipeline.captioner.model import Captioner, caption_loss
from tests.pipeline.captioner.test_model import images, small

SHAPES = [{}, {"num_queries": 3}, {"norm_first": False}]
IDS = torch.tensor([[1, 5, 6, 7, 8, 9], [1, 4, 2, 0, 0, 0], [1, 11, 12, 2, 0, 0]])


def pair(**shape) -> tuple[Captioner, Captioner]:
    """The same weights, larger than they start, in both ways."""
    plain = small("tokens", **shape)
    with torch.no_grad():
        for parameter in plain.git.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.2)
    fused = small("tokens", **shape)
    fused.load_state_dict(plain.state_dict())
    plain.set_attention("plain")
    return plain, fused


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return float((first - second).abs().max()) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_with_and_without_padding(shape):
    plain, fused = pair(**shape)
    batch = images("tokens", 3)
    with torch.inference_mode():
        assert close(plain(IDS, pixel_values=batch).logits, fused(IDS, pixel_values=batch).logits)
        mask = (IDS != 0).long()
        padded = [m(IDS, pixel_values=batch, attention_mask=mask).logits[:, -6:] for m in (plain, fused)]
        assert close(padded[0][mask.bool()], padded[1][mask.bool()])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_image_first_way_gives_the_logits_of_the_whole(shape):
    plain, fused = pair(**shape)
    batch = images("tokens", 3)
    with torch.inference_mode():
        whole = plain(IDS, pixel_values=batch, use_cache=False).logits[:, -6:]
        assert close(whole, plain.caption_logits(batch, IDS))
        assert close(whole, fused.caption_logits(batch, IDS))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_every_gradient(shape, smoothing):
    plain, fused = pair(**shape)
    batch = images("tokens", 3)
    logits = plain(IDS[:, :-1], pixel_values=batch, use_cache=False).logits[:, -5:]
    targets = IDS[:, 1:].masked_fill(IDS[:, 1:] == 0, -100)
    loss = functional.cross_entropy(logits.transpose(1, 2), targets, label_smoothing=smoothing)
    ours = caption_loss(fused, batch, IDS, smoothing)
    assert close(loss, ours)
    loss.backward()
    ours.backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        # A key's bias moves all scores of a row alike, so its gradient is rounding.
        assert one.grad is None or close(one.grad, two.grad), name


def test_dropout_on_a_cpu_keeps_to_transformers_steps():
    """Torch has no fused kernel for it there: the same draws, the same numbers."""
    plain, fused = pair(dropout=0.3)
    batch, found = images("tokens", 3), []
    for model in (plain, fused):
        model.train()
        torch.manual_seed(5)
        found.append(model(IDS, pixel_values=batch).logits)
    assert torch.equal(*found)


@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_generate_with_its_cache_is_the_same(beams):
    plain, fused = pair()
    start, batch = torch.ones(3, 1, dtype=torch.long), images("tokens", 3)
    found = [
        m.generate(input_ids=start, pixel_values=batch, max_new_tokens=12, num_beams=beams, do_sample=False)
        for m in (plain, fused)
    ]
    assert torch.equal(*found)


def test_checkpointed_layers_train_too():
    plain, fused = pair(dropout=0.0)
    batch = images("tokens", 3)
    fused.train().gradient_checkpointing_enable()
    plain.train()
    losses = [caption_loss(model, batch, IDS) for model in (plain, fused)]
    for loss in losses:
        loss.backward()
    name = "git.encoder.layer.0.attention.self.query.weight"
    assert close(plain.get_parameter(name).grad, fused.get_parameter(name).grad)


def test_a_long_tower_is_fused_too():
    model = small("pixels", stem=())
    assert all(isinstance(layer.attention.self, FusedSelfAttention) for layer in model.git.encoder.layer)
    assert model.config.vision_config._attn_implementation == "eager"
    model.config.vision_config.patch_size = 2
    model.set_attention("fused")
    assert model.config.vision_config._attn_implementation == "sdpa"
    batch = torch.rand(2, 17, 32)
    layer = model.git.image_encoder.vision_model.encoder.layers[0]
    fused = layer(batch, None)
    model.set_attention("plain")
    assert close(fused, layer(batch, None))
