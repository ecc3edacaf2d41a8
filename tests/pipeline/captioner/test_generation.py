"""Generation: the ids of transformers' `generate`, every choice the same in any batch, EOS wherever it stands."""

import numpy as np
import pytest
import torch

from pipeline.captioner.generation import GenerationSettings, generate_captions, generate_units
from pipeline.captioner.model import Captioner
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError
from tests.pipeline.captioner.test_model import images, small

VOCABULARY = UnitVocabulary(20)
DRAWN = GenerationSettings(temperature=0.9, top_k=12, top_p=0.9, num_samples=3, seed=4)


def talkative(end: float = 0.0, **shape) -> Captioner:
    """Random weights that say different things of different images; `end` moves EOS up or down."""
    model = small("tokens", **shape)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "image_encoder" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
        model.output.bias[2] = end
        model.output.bias[:2] = -20.0
    return model


def theirs(model: Captioner, batch: torch.Tensor, limit: int, **choice) -> list[list[int]]:
    out = model.generate(
        input_ids=torch.ones(len(batch), 1, dtype=torch.long),
        pixel_values=batch,
        max_new_tokens=limit,
        do_sample=False,
        **choice,
    )
    return [VOCABULARY.decode(row) for row in out[:, 1:].tolist()]


def once(units: list[int]) -> list[int]:
    return [unit for place, unit in enumerate(units) if place == 0 or unit != units[place - 1]]


@pytest.mark.parametrize("end", [-1.0, 1.5])
@pytest.mark.parametrize("shape", [{}, {"norm_first": False}])
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"num_beams": 2},
        {"num_beams": 5},
        {"num_beams": 3, "length_penalty": 0.0},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
    ],
)
def test_the_ids_are_those_of_transformers_generate(choice, shape, end):
    model, batch = talkative(end, **shape), images("tokens", 7)
    expected = [once(units) for units in theirs(model, batch, 14, **choice)]
    assert len({tuple(units) for units in expected}) > 3, "a test that sees something"
    for batch_size in (64, 1, 11):
        spoken = generate_units(
            model, VOCABULARY, batch, max_length=14, batch_size=batch_size, settings=GenerationSettings(**choice)
        )
        assert [units.tolist() for units in spoken] == expected


def test_a_memory_that_grows_and_loses_rows():
    """Longer than a block of the buffers, rows ending one by one."""
    model, batch = talkative(0.5), images("tokens", 24)
    expected = theirs(model, batch, 150)
    lengths = [len(units) for units in expected]
    assert min(lengths) < 40 and max(lengths) > 70, lengths
    spoken = generate_units(model, VOCABULARY, batch, max_length=150)
    assert [units.tolist() for units in spoken] == [once(units) for units in expected]


def test_what_is_drawn_depends_on_seed_and_place_alone():
    model, batch = talkative(), images("tokens", 6)
    whole = generate_captions(model, VOCABULARY, batch, DRAWN, max_length=12)
    for batch_size in (1, 4, 10):
        again = generate_captions(model, VOCABULARY, batch, DRAWN, max_length=12, batch_size=batch_size)
        for one, two in zip(whole, again, strict=True):
            assert [c.units.tolist() for c in one] == [c.units.tolist() for c in two]
            assert np.allclose([c.score for c in one], [c.score for c in two], atol=1e-5)
    tail = generate_captions(model, VOCABULARY, batch[4:], DRAWN, max_length=12, first_image=4)
    assert [c.units.tolist() for c in tail[0]] == [c.units.tolist() for c in whole[4]]
    other = GenerationSettings(temperature=0.9, top_k=12, top_p=0.9, num_samples=3, seed=5)
    assert [[c.units.tolist() for c in found] for found in whole] != [
        [c.units.tolist() for c in found] for found in generate_captions(model, VOCABULARY, batch, other, max_length=12)
    ]


def test_draws_follow_the_distribution():
    """The first id of 2,000 draws, against the model's probabilities at that temperature."""
    model, batch = talkative(), images("tokens", 1)
    logits = model.caption_logits(batch, torch.tensor([[1]]))[0, 0].detach()
    expected = (logits / 1.5).softmax(0)
    settings = GenerationSettings(temperature=1.5, num_samples=2000)
    from pipeline.captioner.generation import _say

    with torch.inference_mode():
        first = _say(model, VOCABULARY, batch, settings, 1, 0).ids[:, 0]
    found = torch.bincount(first, minlength=23) / len(first)
    assert float((found - expected).abs().max()) < 0.04


def test_nucleus_and_top_k_keep_to_the_likeliest():
    model, batch = talkative(), images("tokens", 4)
    greedy = generate_units(model, VOCABULARY, batch, max_length=10)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        settings = GenerationSettings(**{"temperature": 1.0, **narrow})
        spoken = generate_units(model, VOCABULARY, batch, max_length=10, settings=settings)
        assert [units.tolist() for units in spoken] == [units.tolist() for units in greedy]


@pytest.mark.parametrize("settings", [GenerationSettings(num_beams=4), DRAWN, GenerationSettings()])
def test_scores_are_the_models_own_and_sort_the_captions(settings):
    model, batch = talkative(0.5), images("tokens", 3)
    for number, found in enumerate(generate_captions(model, VOCABULARY, batch, settings, max_length=9)):
        assert len(found) >= 1 and [c.score for c in found] == sorted((c.score for c in found), reverse=True)
        for caption in found:
            ids = [1, *(unit + 3 for unit in caption.units.tolist()), *([2] if caption.finished else [])]
            if not caption.finished and len(ids) < 10:
                continue  # a unit was said twice in a row, and the ids are not to be had from the units
            logits = model.caption_logits(batch[number : number + 1], torch.tensor([ids[:-1]])).detach()
            score = logits.log_softmax(-1)[0].gather(1, torch.tensor(ids[1:])[:, None]).mean()
            if len(ids) == len(set(ids)):
                assert caption.score == pytest.approx(float(score), abs=1e-4)


def test_more_beams_never_score_worse_here():
    model, batch = talkative(0.5), images("tokens", 5)
    scores = [
        [found[0].score for found in generate_captions(model, VOCABULARY, batch, settings, max_length=9)]
        for settings in (GenerationSettings(), GenerationSettings(num_beams=5))
    ]
    assert np.mean(scores[1]) > np.mean(scores[0])


def greedy_length(model: Captioner, batch: torch.Tensor) -> int:
    """Ids of the one caption, EOS included, which this model says of its own will."""
    (caption,) = generate_captions(model, VOCABULARY, batch, GenerationSettings(), max_length=60)[0]
    assert caption.finished
    return next(
        number
        for number in range(1, 61)
        if generate_captions(model, VOCABULARY, batch, GenerationSettings(), max_length=number)[0][0].finished
    )


def test_eos_as_the_last_id_that_fits_and_one_short_of_it():
    model = talkative(1.8)
    batch = images("tokens", 24)[[len(units) > 4 for units in theirs(model, images("tokens", 24), 60)].index(True)][
        None
    ]
    number = greedy_length(model, batch)
    last = generate_captions(model, VOCABULARY, batch, GenerationSettings(), max_length=number)[0][0]
    short = generate_captions(model, VOCABULARY, batch, GenerationSettings(), max_length=number - 1)[0][0]
    assert last.finished and not short.finished
    assert last.units.tolist() == short.units.tolist() == once(theirs(model, batch, 60)[0])


@pytest.mark.parametrize("settings", [GenerationSettings(), GenerationSettings(num_beams=3), DRAWN])
def test_eos_first(settings):
    (found,) = generate_captions(talkative(50.0), VOCABULARY, images("tokens", 1), settings, max_length=8)
    assert found[0].units.tolist() == [] and found[0].finished and found[0].units.dtype == np.uint16


@pytest.mark.parametrize("settings", [GenerationSettings(), GenerationSettings(num_beams=3), DRAWN])
def test_eos_never(settings):
    (found,) = generate_captions(talkative(-50.0), VOCABULARY, images("tokens", 1), settings, max_length=8)
    assert not found[0].finished and 1 <= len(found[0].units) <= 8


def test_the_models_positions_bound_the_length():
    model = talkative(-50.0, max_positions=10)
    settings = GenerationSettings(no_repeat_ngram_size=1)
    (found,) = generate_captions(model, VOCABULARY, images("tokens", 1), settings, max_length=100)
    assert len(found[0].units) == 10


def test_a_least_length():
    model, batch = talkative(50.0), images("tokens", 2)
    settings = GenerationSettings(min_length=4, no_repeat_ngram_size=1)
    assert [len(u) for u in generate_units(model, VOCABULARY, batch, max_length=9, settings=settings)] == [4, 4]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"temperature": -1.0}, "temperature"),
        ({"num_beams": 2, "temperature": 1.0}, "choose one"),
        ({"num_samples": 3}, "temperature"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        GenerationSettings(**wrong)


def test_no_images_no_captions():
    assert generate_units(talkative(), VOCABULARY, images("tokens", 0)) == []
