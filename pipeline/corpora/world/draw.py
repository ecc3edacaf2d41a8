"""Draws the worlds of `scenes` with Pillow: supersampled twice, then box-filtered, so edges are antialiased.

Everything random comes from the generator that is passed in: same scene, same generator state, same pixels.
Sizes are fractions of the picture's width, chosen so that a small object still covers about 13 pixels and its
shape can be told when a picture is resized to 64 x 64.
"""

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw

from pipeline.corpora.world.scenes import HELD_OUT, Scene, WideObj, WideScene

Rgb = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 2

# name: hue range in degrees, saturation range, value range
_COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-9, 9), (0.80, 1.0), (0.72, 1.0)),
    "orange": ((23, 33), (0.80, 1.0), (0.88, 1.0)),
    "brown": ((23, 33), (0.65, 0.85), (0.38, 0.50)),
    "yellow": ((50, 61), (0.75, 1.0), (0.85, 1.0)),
    "green": ((100, 145), (0.65, 1.0), (0.50, 0.95)),
    "blue": ((212, 238), (0.70, 1.0), (0.70, 1.0)),
    "purple": ((270, 292), (0.60, 0.95), (0.55, 0.95)),
    "pink": ((322, 338), (0.35, 0.55), (0.90, 1.0)),
    "white": ((0, 360), (0.0, 0.06), (0.92, 1.0)),
    "gray": ((0, 360), (0.0, 0.08), (0.48, 0.62)),
}
_DEMO_JITTER = 0.5  # the part of a colour's range that the demo's own pictures use
_NEAR_DEGREES = 18.0  # how far outside a named hue range a free colour still counts as that colour
_DIAMETER = {"small": (0.19, 0.22), "large": (0.34, 0.38)}
_WIDE_DIAMETER = {"small": (0.175, 0.23), "large": (0.32, 0.40)}
_ROW_DIAMETER = {"small": (0.16, 0.19), "large": (0.29, 0.31)}  # three in a row must fit
_PLACES = {
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
    "middle": (0.5, 0.5),
}


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


# ---------------------------------------------------------------------------------------------- shapes


def _regular(number: int, start: float, radius: float = 1.0) -> list[Point]:
    angles = [math.radians(start + 360 * i / number) for i in range(number)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star() -> list[Point]:
    outer, inner = _regular(5, -90, 1.15), _regular(5, -54, 0.50)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


def _cross() -> list[Point]:
    a, b = 1.02, 0.34
    right = [(b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a)]
    return [*right, *((-x, -y) for x, y in right)]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 32 for i in range(32)]
    return [
        (
            math.sin(t) ** 3 * 1.02,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15.5,
        )
        for t in angles
    ]


_OUTLINES: dict[str, list[Point]] = {
    "circle": _regular(40, 0, 0.98),
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -1.0), (1.06, 0.84), (-1.06, 0.84)],
    "star": _star(),
    "cross": _cross(),
    "diamond": [(0.0, -1.12), (0.82, 0.0), (0.0, 1.12), (-0.82, 0.0)],
    "ring": _regular(40, 0, 1.0),
    "heart": _heart(),
}


def _outline(shape: str, centre: Point, radius: float, degrees: float) -> list[Point]:
    cos, sin = math.cos(math.radians(degrees)) * radius, math.sin(math.radians(degrees)) * radius
    x0, y0 = centre
    return [(x0 + x * cos - y * sin, y0 + x * sin + y * cos) for x, y in _OUTLINES[shape]]


def _draw_shape(
    canvas: Image.Image, shape: str, centre: Point, radius: float, degrees: float, fill: Rgb | Image.Image
) -> None:
    points = _outline(shape, centre, radius, degrees)
    if isinstance(fill, tuple) and shape != "ring":
        ImageDraw.Draw(canvas).polygon(points, fill=fill)
        return
    mask = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(mask)
    pen.polygon(points, fill=255)
    if shape == "ring":
        pen.polygon(_outline(shape, centre, radius * 0.52, degrees), fill=0)
    canvas.paste(fill, (0, 0, *canvas.size), mask)


# ---------------------------------------------------------------------------------------------- colours


def _rgb(hue: float, saturation: float, value: float) -> Rgb:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def named_colour(name: str, rng: np.random.Generator, jitter: float = 1.0) -> Rgb:
    """A colour that goes by `name`; `jitter` is the part of the name's range used, around its middle."""
    return _rgb(*(_uniform(rng, m - h, m + h) for m, h in _spans(name, jitter)))


def _spans(name: str, jitter: float) -> list[tuple[float, float]]:
    return [((low + high) / 2, (high - low) / 2 * jitter) for low, high in _COLOURS[name]]


def near_held_out(colour: Rgb, shape: str) -> bool:
    """True when `colour` on `shape` could be taken for a combination that is held out."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    if saturation < 0.12 or value < 0.12:
        return False
    for name, held_shape in HELD_OUT:
        low, high = _COLOURS[name][0]
        distance = abs((hue * 360 - (low + high) / 2 + 180) % 360 - 180)
        if shape == held_shape and distance < (high - low) / 2 + _NEAR_DEGREES:
            return True
    return False


def free_colour(shape: str, rng: np.random.Generator) -> Rgb:
    """Any colour bright enough to be seen that no held-out combination could be read into."""
    while True:
        red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
        if max(red, green, blue) >= 120 and not near_held_out((red, green, blue), shape):
            return red, green, blue


def _free_fill(obj: WideObj, rng: np.random.Generator, side: int) -> Rgb | Image.Image:
    first = free_colour(obj.shape, rng)
    if obj.fill == "solid":
        return first
    second = free_colour(obj.shape, rng)
    if obj.fill == "stripes":
        return _stripes(first, second, rng, side, side // 16, side // 8)
    # Between two allowed hues lie others, perhaps held out: fade to the same hue, darker or paler.
    towards = 255 if rng.random() < 0.5 else 60
    second = tuple((c + towards) // 2 if towards == 255 else c * 2 // 5 for c in first)  # type: ignore[assignment]
    ramp = np.array([[first, second], [second, first]][int(rng.integers(2))], np.uint8)[None]
    image = Image.fromarray(ramp if rng.random() < 0.5 else ramp.transpose(1, 0, 2))
    return image.resize((side, side), Image.Resampling.BILINEAR)


def _stripes(first: Rgb, second: Rgb, rng: np.random.Generator, side: int, low: int, high: int) -> Image.Image:
    """Stripes of two colours, `low` to `high` pixels from one to the next."""
    image = Image.new("RGB", (side, side), first)
    pen = ImageDraw.Draw(image)
    period = max(4, int(rng.integers(low, high + 1)))
    slant = (0, side, side // 2)[int(rng.integers(3))]
    upright = rng.random() < 0.5
    for start in range(-side, 2 * side, period):
        ends = (start, -1, start + slant, side) if upright else (-1, start, side, start + slant)
        pen.line(ends, fill=second, width=max(1, period // 2))
    return image


# ---------------------------------------------------------------------------------------------- backgrounds


def _background(rng: np.random.Generator, side: int, brightest: float) -> Image.Image:
    """A dim texture (plain, fade, clouds, stripes, checks or grain) of little contrast around one hue."""
    hue, saturation = _uniform(rng, 0, 360), _uniform(rng, 0, 0.6)
    value = _uniform(rng, 0.04, brightest)
    base = _rgb(hue, saturation, value)
    other = _rgb(hue + _uniform(rng, -40, 40), saturation, min(brightest, value + _uniform(rng, 0.03, 0.12)))
    kind = int(rng.integers(6))
    if kind == 0:
        return Image.new("RGB", (side, side), base)
    if kind == 1:
        return _stripes(base, other, rng, side, side // 16, side // 5)
    low, high = np.array(base, np.float32), np.array(other, np.float32)
    number = (2, int(rng.integers(3, 11)), int(rng.integers(4, 9)), side // SUPERSAMPLING)[kind - 2]
    mix = rng.random((number, number, 1), dtype=np.float32)
    if kind == 4:
        mix = np.indices((number, number)).sum(0)[..., None] % 2
    how = Image.Resampling
    image = Image.fromarray((low + (high - low) * mix).astype(np.uint8))
    return image.resize((side, side), (how.BILINEAR, how.BICUBIC, how.NEAREST, how.NEAREST)[kind - 2])


# ---------------------------------------------------------------------------------------------- scenes


def render(scene: Scene, rng: np.random.Generator, size: int = 128) -> Image.Image:
    """An RGB picture of a demo scene, `size` x `size`: the pair clearly vertical or clearly horizontal."""
    side = size * SUPERSAMPLING
    canvas = _background(rng, side, 0.26)
    scene = scene.canonical()
    upright = scene.relation == "above"
    for obj, along in ((scene.first, 0.26), (scene.second, 0.74)):
        diameter = _uniform(rng, *_DIAMETER[obj.size])
        x, y = along + _uniform(rng, -0.03, 0.03), 0.5 + _uniform(rng, -0.10, 0.10)
        centre = (y, x) if upright else (x, y)
        fill = named_colour(obj.colour, rng, _DEMO_JITTER)
        where = (centre[0] * side, centre[1] * side)
        _draw_shape(canvas, obj.shape, where, diameter / 2 * side, _uniform(rng, -6, 6), fill)
    return canvas.reduce(SUPERSAMPLING)


def _wide_places(scene: WideScene, rng: np.random.Generator) -> list[Point]:
    if scene.layout == "position":
        x, y = _PLACES[str(scene.position)]
        return [(x + _uniform(rng, -0.06, 0.06), y + _uniform(rng, -0.06, 0.06))]
    along = (0.26, 0.74) if len(scene.objects) == 2 else (0.17, 0.5, 0.83)
    slack = 0.03 if len(scene.objects) == 2 else 0.01
    places = [(a + _uniform(rng, -slack, slack), 0.5 + _uniform(rng, -0.12, 0.12)) for a in along]
    return [(y, x) for x, y in places] if scene.layout == "column" else places


def render_wide(scene: WideScene, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """An RGB picture of a wide scene, `size` x `size`; more jitter and brighter backgrounds than the demo."""
    side = size * SUPERSAMPLING
    canvas = _background(rng, side, 0.30)
    diameters = _ROW_DIAMETER if len(scene.objects) == 3 else _WIDE_DIAMETER
    for obj, (x, y) in zip(scene.objects, _wide_places(scene, rng), strict=True):
        fill = _free_fill(obj, rng, side) if obj.colour is None else named_colour(obj.colour, rng)
        radius = _uniform(rng, *diameters[obj.size]) / 2 * side
        _draw_shape(canvas, obj.shape, (x * side, y * side), radius, _uniform(rng, -12, 12), fill)
    return canvas.reduce(SUPERSAMPLING)
