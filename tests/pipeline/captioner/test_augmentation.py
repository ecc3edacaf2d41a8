"""Augmentation of image tokens: nothing by default, and each kind does what it says, the same each time."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.captioner.augmentation import AugmentationSettings, TokenAugmentation, nearest_codes, resize_weights
from pipeline.captioner.batches import MemoryFeed, Sharing
from pipeline.captioner.data import Examples
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError

OFF = AugmentationSettings()
CODES = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 40, (200, 1, 8, 8), generator=torch.Generator().manual_seed(1))
EVERYTHING = AugmentationSettings(synonyms=0.2, swap=0.5, crop=0.3, noise=0.5, share=0.7)


def augmented(settings: AugmentationSettings, grid=(8, 8), seed=0, step=1, tokens=TOKENS, indices=None) -> torch.Tensor:
    numbers = range(len(tokens)) if indices is None else indices
    return TokenAugmentation(settings, CODES, grid, seed)(tokens, step, numbers)


def vectors(tokens: torch.Tensor) -> torch.Tensor:
    return CODES[tokens[:, 0]].permute(0, 3, 1, 2)


@pytest.mark.parametrize("settings", [OFF, replace(EVERYTHING, share=0.0)])
def test_nothing_happens_unless_asked_for(settings):
    assert not settings.is_on and augmented(settings) is TOKENS


@pytest.mark.parametrize("name", ["synonyms", "swap", "crop", "random_place", "noise"])
def test_each_is_on_by_itself_and_leaves_its_input_alone(name):
    value = {"random_place": True}.get(name, 0.5)
    settings = replace(OFF, **{name: value})
    before = TOKENS.clone()
    changed = augmented(settings, grid=(6, 6) if name == "random_place" else (8, 8))
    assert settings.is_on and torch.equal(TOKENS, before)
    assert changed.dtype == (torch.float32 if name in ("crop", "noise") else torch.int64)
    assert changed.shape == {"random_place": (200, 1, 6, 6)}.get(
        name, (200, 6, 8, 8) if name in ("crop", "noise") else (200, 1, 8, 8)
    )


def test_synonyms_are_neighbours_and_as_many_as_asked_for():
    distances = torch.cdist(CODES, CODES).fill_diagonal_(torch.inf)
    nearest = distances.argsort(dim=1)[:, :3]
    assert torch.equal(torch.from_numpy(nearest_codes(CODES, 3)), nearest)
    changed = augmented(replace(OFF, synonyms=0.25, num_synonyms=3))
    moved = changed != TOKENS
    assert 0.22 < float(moved.float().mean()) < 0.28
    allowed = (nearest[TOKENS[moved]] == changed[moved][:, None]).any(1)
    assert bool(allowed.all()) and len({int(n) for n in changed[moved]}) > 20
    assert not bool((augmented(replace(OFF, synonyms=1.0)) == TOKENS).any())


def test_a_swap_moves_two_blocks_and_loses_no_token():
    places = torch.arange(64).view(1, 1, 8, 8).repeat(200, 1, 1, 1)
    moved = Counter()
    for after in augmented(replace(OFF, swap=0.5), tokens=places)[:, 0].numpy():
        assert sorted(after.flatten().tolist()) == list(range(64))
        assert (after.flatten()[after.flatten()] == np.arange(64)).all(), "what went there came here"
        moved[int((after != places[0, 0].numpy()).sum())] += 1
    assert set(moved) == {2 * side**2 for side in (1, 2, 3, 4)}


def test_a_crop_equals_torchs_bicubic_resize_of_the_cut():
    starts, sizes = np.array([0, 3, 1, 2]), np.array([8, 5, 7, 1])
    weights = resize_weights(starts, sizes, 8, 6)
    line = torch.randn(8)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        cut = line[start : start + size].view(1, 1, 1, -1)
        expected = functional.interpolate(cut, size=(1, 6), mode="bicubic", align_corners=False)[0, 0, 0]
        torch.testing.assert_close(weights[number] @ line, expected, atol=1e-5, rtol=0)
    identity = resize_weights(np.array([0]), np.array([8]), 8, 8)[0]
    assert torch.equal(identity, torch.eye(8))


def test_crops_keep_the_share_that_was_asked_for():
    maker = TokenAugmentation(replace(OFF, crop=0.3), CODES, (8, 8), 0)
    boxes = np.array([maker._box((32, 32), np.random.default_rng(n)) for n in range(500)])
    area = boxes[:, 2] * boxes[:, 3] / 32**2
    aspect = boxes[:, 3] / boxes[:, 2]
    assert 0.27 < area.min() < 0.35 and 0.9 < area.max() <= 1 and 0.6 < area.mean() < 0.7
    assert 0.7 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.45
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 32).all()


def test_a_smaller_grid_is_the_centre_or_any_place():
    noisy = augmented(replace(OFF, noise=1e-9), grid=(4, 4))
    torch.testing.assert_close(noisy, vectors(TOKENS)[:, :, 2:6, 2:6], atol=1e-5, rtol=0)
    anywhere = augmented(replace(OFF, random_place=True), grid=(4, 4))
    windows = TOKENS[:, 0].unfold(1, 4, 1).unfold(2, 4, 1)
    found = (windows == anywhere[:, 0, None, None]).all(-1).all(-1)
    assert found.shape == (200, 5, 5) and bool(found.any(1).any(1).all())
    assert bool(found.any(0).all()), "every place occurs"


def test_noise_has_the_deviation_of_its_share_of_the_codebooks():
    added = augmented(replace(OFF, noise=0.5)) - vectors(TOKENS)
    assert float(added.std()) == pytest.approx(0.5 * float(CODES.std()), rel=0.02)
    assert abs(float(added.mean())) < 0.01
    half = augmented(replace(OFF, noise=0.5, share=0.5)) - vectors(TOKENS)
    assert 0.4 < float((half.flatten(1).abs().sum(1) > 0).float().mean()) < 0.6


def test_what_happens_depends_on_seed_step_and_index_alone():
    whole = augmented(EVERYTHING)
    assert torch.equal(whole, augmented(EVERYTHING))
    part = augmented(EVERYTHING, tokens=TOKENS[[7, 150]], indices=[7, 150])
    torch.testing.assert_close(part, whole[[7, 150]], atol=1e-6, rtol=0)
    for other in ({"seed": 1}, {"step": 2}, {"indices": range(1, 201)}):
        assert not torch.equal(whole, augmented(EVERYTHING, **other))


def test_one_augmentation_leaves_the_draws_of_another_alone():
    alone = augmented(replace(OFF, synonyms=0.3))
    swapped = augmented(replace(OFF, synonyms=0.3, swap=0.5))
    for before, after in zip(alone.numpy(), swapped.numpy(), strict=True):
        assert Counter(before.flatten().tolist()) == Counter(after.flatten().tolist())


@pytest.mark.parametrize("images", [torch.rand(2, 1, 5, 6), torch.rand(2, 3, 8, 8), TOKENS[:, 0]])
def test_only_tokens_can_be_augmented(images):
    with pytest.raises(InputError, match="tokens .* were expected"):
        TokenAugmentation(EVERYTHING, CODES, (8, 8), 0)(images, 1, range(len(images)))


@pytest.mark.parametrize("sharing", [Sharing(0, 1, 3), Sharing(1, 2, 1), Sharing(1, 2, 2)])
def test_shares_of_a_batch_are_changed_as_the_whole_batch_is(sharing):
    """Several processes, or several turns of one, see what one process sees in one turn."""
    rng = np.random.default_rng(0)
    examples = Examples(TOKENS[:24], [[rng.permutation(20)[:8].tolist()] for _ in range(24)])
    sizes = {"batch_size": 12, "batch_tokens": 0, "max_length": 16, "seed": 0}
    augment = TokenAugmentation(EVERYTHING, CODES, (8, 8), 0)

    def changed(sharing: Sharing) -> dict[int, torch.Tensor]:
        parts = next(MemoryFeed(examples, UnitVocabulary(20), sharing=sharing, **sizes)).parts
        return {
            number: image
            for part in parts
            for number, image in zip(part.numbers, augment(part.images, 5, part.numbers), strict=True)
        }

    whole, share = changed(Sharing()), changed(sharing)
    assert len(whole) == 12 and len(share) == 12 // sharing.count
    for number, image in share.items():
        torch.testing.assert_close(image, whole[number], atol=1e-6, rtol=0)
