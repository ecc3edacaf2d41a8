"""What the drawn world contains and how it is spoken of: objects, scenes, splits, captions, and back again.

The demo world is two objects in one of four relations. The wider world is what the bundled models are
pretrained on: more colours and shapes, one to three objects, colours without a name. Both stand here because
they share one promise: a combination held out for a test split never appears in anything a model learns from.
Nothing here draws (see `draw`), and nothing but a seeded generator decides.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
RELATIONS = ("above", "below", "left of", "right of")
WIDE_COLOURS = (*COLOURS, "orange", "pink", "brown", "gray")
WIDE_SHAPES = (*SHAPES, "diamond", "ring", "heart")
POSITIONS = ("top left", "top right", "bottom left", "bottom right", "middle")
FILLS = ("solid", "stripes", "gradient")

HELD_OUT = (("blue", "star"), ("yellow", "circle"), ("red", "cross"))
"""Colour and shape together only in `test_novel`; in no other split and in no pretraining."""

SPLITS = ("train", "val", "test", "test_novel")
INVERSE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_SPOKEN = {"above": "above", "below": "below", "left of": "to the left of", "right of": "to the right of"}
_RELATION_WORDS = {"above": "above", "below": "below", "left": "left of", "right": "right of"}


@dataclass(frozen=True)
class Obj:
    """An object of the demo world."""

    colour: str
    shape: str
    size: str

    @property
    def combination(self) -> tuple[str, str]:
        """Colour and shape, the unit in which things are held out."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """Two objects; `first` stands in `relation` to `second` ("above": first is above second)."""

    first: Obj
    second: Obj
    relation: str

    def canonical(self) -> "Scene":
        """The same picture with the upper or left object first."""
        if self.relation in ("above", "left of"):
            return self
        return Scene(self.second, self.first, INVERSE[self.relation])


@dataclass(frozen=True)
class WideObj:
    """An object of the wider world; no colour name means a free colour, on which captions keep silent."""

    colour: str | None
    shape: str
    size: str
    fill: str = "solid"


@dataclass(frozen=True)
class WideScene:
    """One to three objects in reading order (left to right, or top to bottom).

    `layout` is "position" for one object (then `position` names the place), "column" or "row" for more.
    `plain` scenes are drawn and spoken like the demo's own.
    """

    objects: tuple[WideObj, ...]
    layout: str
    position: str | None = None
    plain: bool = False


@dataclass(frozen=True)
class ParsedObject:
    """What a transcript says of one object; None where it says nothing."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None


@dataclass(frozen=True)
class ParsedCaption:
    """What a transcript says: its objects in spoken order and the relation of the first to the second."""

    objects: tuple[ParsedObject, ...] = ()
    relation: str | None = None

    def canonical(self) -> "ParsedCaption":
        """The same statement, upper or left object first; unchanged unless two objects are related."""
        if len(self.objects) != 2 or self.relation in (None, "above", "left of"):
            return self
        return ParsedCaption(self.objects[::-1], INVERSE[str(self.relation)])


# ---------------------------------------------------------------------------------------------- splits


def pair_split(first: tuple[str, str], second: tuple[str, str]) -> str:
    """The split that owns an unordered pair of (colour, shape) combinations: a stable hash, 85 / 5 / 10 %.

    Pairs with a held-out combination belong to `test_novel`.
    """
    if first in HELD_OUT or second in HELD_OUT:
        return "test_novel"
    name = "|".join(" ".join(c) for c in sorted((first, second)))
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    return "val" if bucket < 5 else "test" if bucket < 15 else "train"


def _pairs_of(split: str) -> tuple[tuple[tuple[str, str], tuple[str, str]], ...]:
    combinations = [(c, s) for c in COLOURS for s in SHAPES]
    # Two held-out combinations in one scene would make test_novel harder by a second novelty: left out.
    return tuple(
        (a, b)
        for a, b in itertools.permutations(combinations, 2)
        if pair_split(a, b) == split and not (a in HELD_OUT and b in HELD_OUT)
    )


_PAIRS = {split: _pairs_of(split) for split in SPLITS}


def sample_scene(rng: np.random.Generator, split: str) -> Scene:
    """A scene of `split` ("train", "val", "test", "test_novel"), uniform over the pairs that it owns.

    The two objects never share both colour and shape, so that every caption is unambiguous.
    Raises KeyError for another split.
    """
    pairs = _PAIRS[split]
    (c1, s1), (c2, s2) = pairs[int(rng.integers(len(pairs)))]
    return Scene(
        Obj(c1, s1, SIZES[int(rng.integers(2))]),
        Obj(c2, s2, SIZES[int(rng.integers(2))]),
        RELATIONS[int(rng.integers(4))],
    )


# ---------------------------------------------------------------------------------------------- captions


def _phrase(obj: Obj | WideObj) -> str:
    return " ".join(word for word in (obj.size, obj.colour, obj.shape) if word)


def _two_object_captions(first: Obj | WideObj, second: Obj | WideObj, relation: str) -> list[str]:
    a, b = _phrase(first), _phrase(second)
    there, back = _SPOKEN[relation], _SPOKEN[INVERSE[relation]]
    return [
        f"a {a} {there} a {b}",
        f"a {b} {back} a {a}",
        f"there is a {a} {there} a {b}",
        f"the {a} is {there} the {b}",
        f"the {b} is {back} the {a}",
    ]


def captions(scene: Scene) -> list[str]:
    """The five paraphrases of a scene, always in this order, whichever way round it is told."""
    scene = scene.canonical()
    return _two_object_captions(scene.first, scene.second, scene.relation)


def parse_caption(text: str) -> ParsedCaption:
    """Reads a transcript back into objects and a relation; whatever it does not understand it skips.

    An object ends at its shape, at a relation, or where a size or colour is said a second time.
    The result is empty, not an error, when nothing is understood.
    """
    objects: list[ParsedObject] = []
    relation: str | None = None
    current: dict[str, str] = {}

    def close() -> None:
        if current:
            objects.append(ParsedObject(**current))
            current.clear()

    for word in text.lower().replace(".", " ").replace(",", " ").split():
        kind = (
            "size" if word in SIZES else "colour" if word in WIDE_COLOURS else "shape" if word in WIDE_SHAPES else None
        )
        if kind is not None:
            if kind in current:
                close()
            current[kind] = word
            if kind == "shape":
                close()
        elif word in _RELATION_WORDS:
            close()
            relation = relation or _RELATION_WORDS[word]
    close()
    return ParsedCaption(tuple(objects), relation)


# ---------------------------------------------------------------------------------------------- wider world


def _choice(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _wide_object(rng: np.random.Generator) -> WideObj:
    while True:
        kind = rng.random()
        colour = None if kind < 0.45 else _choice(rng, COLOURS if kind < 0.8 else WIDE_COLOURS)
        shape = _choice(rng, SHAPES if rng.random() < 0.7 else WIDE_SHAPES)
        if (colour, shape) in HELD_OUT:
            continue
        fill = _choice(rng, FILLS) if colour is None else "solid"
        return WideObj(colour, shape, _choice(rng, SIZES), fill)


def _may_be_learnt(objects: Sequence[WideObj]) -> bool:
    """No two objects alike, and no pair that belongs to the demo's val or test splits."""
    if len({(o.colour, o.shape) for o in objects}) < len(objects):
        return False
    named = [(o.colour, o.shape) for o in objects if o.colour is not None]
    return all(pair_split(a, b) == "train" for a, b in itertools.combinations(named, 2))


def sample_wide(rng: np.random.Generator, plain_share: float = 0.5) -> WideScene:
    """A scene of the wider world.

    `plain_share` of the scenes are the demo's train split. Of the rest, half are two objects in the same
    grammar with more colours, shapes and free colours; the others are one object at a named place, or three
    in a row.
    """
    if rng.random() < plain_share:
        scene = sample_scene(rng, "train").canonical()
        objects = tuple(WideObj(o.colour, o.shape, o.size) for o in (scene.first, scene.second))
        return WideScene(objects, "column" if scene.relation == "above" else "row", plain=True)
    kind = rng.random()
    if kind < 0.25:
        return WideScene((_wide_object(rng),), "position", _choice(rng, POSITIONS))
    number = 2 if kind < 0.8 else 3
    while True:
        objects = tuple(_wide_object(rng) for _ in range(number))
        if _may_be_learnt(objects):
            return WideScene(objects, _choice(rng, ("column", "row")))


def wide_captions(scene: WideScene) -> list[str]:
    """All the ways `wide_caption` may speak of a scene."""
    names = [_phrase(o) for o in scene.objects]
    if scene.layout == "position":
        where = f"in the {scene.position}"
        return [f"a {names[0]} {where}", f"there is a {names[0]} {where}", f"the {names[0]} is {where}"]
    relation = "above" if scene.layout == "column" else "left of"
    if len(names) == 2:
        return _two_object_captions(scene.objects[0], scene.objects[1], relation)
    there, back = _SPOKEN[relation], _SPOKEN[INVERSE[relation]]
    return [
        f" {there} ".join(f"a {n}" for n in names),
        f" {back} ".join(f"a {n}" for n in names[::-1]),
        "there is " + f" {there} ".join(f"a {n}" for n in names),
    ]


def wide_caption(scene: WideScene, rng: np.random.Generator) -> str:
    """One caption of a wide scene; two objects are spoken of in the demo's own five forms."""
    return _choice(rng, wide_captions(scene))
