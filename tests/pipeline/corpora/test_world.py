"""The drawn world: splits that do not touch, held-out things that stay out, captions that read back."""

import colorsys
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpora.world import draw, scenes, textures
from pipeline.corpora.world.scenes import HELD_OUT, Obj, ParsedCaption, ParsedObject, Scene

COMBINATIONS = list(itertools.product(scenes.COLOURS, scenes.SHAPES))
OBJECTS = st.builds(Obj, st.sampled_from(scenes.COLOURS), st.sampled_from(scenes.SHAPES), st.sampled_from(scenes.SIZES))
SCENES = st.builds(Scene, OBJECTS, OBJECTS, st.sampled_from(scenes.RELATIONS))


def samples(split: str, number: int = 3000) -> list[Scene]:
    rng = np.random.default_rng(1)
    return [scenes.sample_scene(rng, split) for _ in range(number)]


def test_splits_share_no_pair_and_held_out_things_stay_in_test_novel():
    pairs = {
        split: {frozenset((s.first.combination, s.second.combination)) for s in samples(split)}
        for split in scenes.SPLITS
    }
    for one, other in itertools.combinations(scenes.SPLITS, 2):
        assert not pairs[one] & pairs[other]
    for split, found in pairs.items():
        held_out = [sum(c in HELD_OUT for c in pair) for pair in found]
        assert set(held_out) == ({1} if split == "test_novel" else {0})
    assert len(pairs["train"]) > 250 and len(pairs["test"]) >= 25 and len(pairs["val"]) >= 10


def test_every_held_out_attribute_is_known_from_other_combinations():
    seen = {o.combination for scene in samples("train") for o in (scene.first, scene.second)}
    assert seen == set(COMBINATIONS) - set(HELD_OUT)


def test_pretraining_never_shows_what_is_held_out():
    rng = np.random.default_rng(2)
    for _ in range(20_000):
        scene = scenes.sample_wide(rng)
        named = [(o.colour, o.shape) for o in scene.objects if o.colour]
        assert not set(named) & set(HELD_OUT)
        for a, b in itertools.combinations(named, 2):
            assert scenes.pair_split(a, b) == "train"
        for text in scenes.wide_captions(scene):
            assert not any(f"{colour} {shape}" in text for colour, shape in HELD_OUT)


@pytest.mark.parametrize(("colour", "shape"), HELD_OUT)
def test_free_colours_keep_clear_of_held_out_hues(colour, shape):
    rng = np.random.default_rng(3)
    for _ in range(300):
        assert draw.near_held_out(draw.named_colour(colour, rng), shape)
        red, green, blue = draw.free_colour(shape, rng)
        hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        middle = sum(draw._COLOURS[colour][0]) / 2
        distance = abs((hue * 360 - middle + 180) % 360 - 180)
        assert distance > 20 or saturation < 0.13 or value < 0.13


@given(SCENES)
def test_captions_read_back(scene):
    wanted = scene.canonical()
    expected = ParsedCaption(
        tuple(ParsedObject(o.size, o.colour, o.shape) for o in (wanted.first, wanted.second)), wanted.relation
    )
    texts = scenes.captions(scene)
    assert len(set(texts)) == 5
    for text in texts:
        assert scenes.parse_caption(text.upper() + ".").canonical() == expected
    assert texts == scenes.captions(Scene(scene.second, scene.first, scenes.INVERSE[scene.relation]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ParsedCaption()),
        ("um nothing here", ParsedCaption()),
        (
            "a red above a large square",
            ParsedCaption((ParsedObject(colour="red"), ParsedObject("large", None, "square")), "above"),
        ),
        (
            "small small star to the left",
            ParsedCaption((ParsedObject("small"), ParsedObject("small", None, "star")), "left of"),
        ),
    ],
)
def test_broken_transcripts_are_read_as_far_as_they_go(text, expected):
    assert scenes.parse_caption(text) == expected


def test_pictures_depend_on_the_generator_alone_and_have_the_size_asked_for():
    def pictures(seed: int) -> list[bytes]:
        rng = np.random.default_rng(seed)
        made = [
            draw.render(scenes.sample_scene(rng, "test_novel"), rng),
            draw.render_wide(scenes.sample_wide(rng, 0.0), rng, 64),
            textures.sample_texture(rng, 64),
        ]
        assert [image.size for image in made] == [(128, 128), (64, 64), (64, 64)]
        return [image.tobytes() for image in made]

    assert pictures(4) == pictures(4) != pictures(5)


@pytest.mark.parametrize("relation", scenes.RELATIONS)
def test_objects_stand_where_the_relation_says(relation):
    rng = np.random.default_rng(6)
    scene = Scene(Obj("red", "circle", "large"), Obj("green", "square", "small"), relation)
    pixels = np.asarray(draw.render(scene, rng), np.int32)
    bright = pixels.max(axis=2) > 110
    red = np.argwhere(bright & (pixels[..., 0] > 2 * pixels[..., 1]))
    green = np.argwhere(bright & (pixels[..., 1] > 2 * pixels[..., 0]))
    down, right = green.mean(axis=0) - red.mean(axis=0)
    wanted = {"above": down, "below": -down, "left of": right, "right of": -right}[relation]
    other = right if relation in ("above", "below") else down
    assert wanted > 40 and abs(other) < 30 and len(red) > 2 * len(green)
