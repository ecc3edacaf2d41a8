"""Pictures that are no scenes: handwriting-like strokes, fades, grain, patterns and clutter.

They exist so that the image tokenizer, which learns from them beside the scenes, is a general one and not a
catalogue of coloured shapes; above all it must also reconstruct white handwriting on black.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.corpora.world.draw import SUPERSAMPLING, Rgb, free_colour

Point = tuple[float, float]


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> list[Point]:
    angles = np.radians(np.linspace(start, stop, 12))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


# The digits as pen strokes in a box from -1 to 1, y downwards.
_DIGITS: tuple[tuple[list[Point], ...], ...] = (
    (_arc(0, 0, 0.55, 0.9, -90, 270),),
    ([(-0.3, -0.55), (0.05, -0.9), (0.05, 0.9)],),
    ([*_arc(0, -0.4, 0.5, 0.5, -170, 30), (-0.5, 0.9), (0.55, 0.9)],),
    (_arc(-0.05, -0.45, 0.45, 0.45, -150, 90), _arc(-0.05, 0.45, 0.5, 0.45, -90, 150)),
    ([(0.1, -0.9), (-0.55, 0.25), (0.6, 0.25)], [(0.25, -0.2), (0.2, 0.9)]),
    ([(0.5, -0.9), (-0.35, -0.9), (-0.4, -0.1), *_arc(-0.05, 0.35, 0.5, 0.52, -110, 140)],),
    ([(0.35, -0.9), (-0.3, -0.1), *_arc(-0.02, 0.4, 0.48, 0.5, -170, 180)],),
    ([(-0.5, -0.9), (0.5, -0.9), (-0.1, 0.9)],),
    (_arc(0, -0.45, 0.4, 0.43, -90, 270), _arc(0, 0.45, 0.5, 0.45, -90, 270)),
    ([*_arc(0, -0.4, 0.45, 0.48, 0, 350), (0.42, -0.4), (0.3, 0.9)],),
)


def _colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> Rgb:
    red, green, blue = (int(c) for c in rng.integers(low, high, 3))
    return red, green, blue


def _pen(image: Image.Image, strokes: list[np.ndarray], width: float, ink: int | Rgb) -> None:
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        points = [(float(x), float(y)) for x, y in stroke]
        pen.line(points, fill=ink, width=max(1, round(width)), joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=ink)


def _handwriting(rng: np.random.Generator, side: int) -> Image.Image:
    """One to three slanted, wobbly digits, mostly white on black; some scanned at a few pixels only."""
    number = int(rng.integers(1, 4))
    image = Image.new("L", (side, side))
    cell = side / number
    height = min(side * rng.uniform(0.3, 0.45), cell * rng.uniform(0.45, 0.8))
    width = height * rng.uniform(0.15, 0.32)
    ink = int(rng.integers(150, 256))
    for index in range(number):
        slant, turn = rng.normal(0, 0.2), rng.normal(0, 0.1)
        matrix = np.array([[rng.uniform(0.6, 1.0), slant], [turn, 1.0]]) * height
        centre = ((index + 0.5) * cell + rng.normal(0, 0.03) * side, side * (0.5 + rng.normal(0, 0.05)))
        strokes = []
        for stroke in _DIGITS[int(rng.integers(10))]:
            points = np.array(stroke) + rng.normal(0, 0.05, (len(stroke), 2))
            strokes.append(points @ matrix.T + centre)
        _pen(image, strokes, width, ink)
    image = image.filter(ImageFilter.GaussianBlur(width * 0.15))
    if rng.random() < 0.5:  # as in collections of digits scanned at 8 to 28 pixels
        pixels = int(rng.integers(8, 15)) * number
        filters = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
        scan = image.resize((pixels, pixels), Image.Resampling.BOX)
        image = scan.resize((side, side), filters[int(rng.integers(3))])
    if rng.random() < 0.2:
        image = image.point(lambda value: 255 - value)
    return image.convert("RGB")


def _scribble(rng: np.random.Generator, side: int) -> Image.Image:
    """Random curved pen strokes in any colours."""
    image = Image.new("RGB", (side, side), _colour(rng))
    for _ in range(int(rng.integers(1, 7))):
        walk = np.cumsum(rng.normal(0, side * 0.07, (int(rng.integers(4, 20)), 2)), axis=0)
        _pen(image, [walk + rng.uniform(0.2, 0.8, 2) * side], side * rng.uniform(0.01, 0.07), _colour(rng))
    return image


def _clouds(rng: np.random.Generator, side: int) -> Image.Image:
    """Smooth fades, from two colours to eight a side."""
    number = int(rng.integers(2, 9))
    pixels = rng.integers(0, 256, (number, number, 3), dtype=np.uint8)
    if rng.random() < 0.3:
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def _grain(rng: np.random.Generator, side: int) -> Image.Image:
    """A fade under noise of some coarseness."""
    base = np.asarray(_clouds(rng, side), np.float32)
    number = int(rng.integers(side // 8, side // SUPERSAMPLING + 1))
    noise = rng.normal(0, rng.uniform(4, 40), (number, number)).clip(-127, 127).astype(np.int16)
    grain = Image.fromarray((noise + 128).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    pixels = base + np.asarray(grain, np.float32)[..., None] - 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _waves(rng: np.random.Generator, side: int) -> Image.Image:
    """Two colours in plane waves, soft or hard, at any angle."""
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    angle, frequency = rng.uniform(0, math.pi), rng.uniform(1, 12)
    wave = np.sin(2 * math.pi * frequency * (x * math.cos(angle) + y * math.sin(angle)))
    mix = (wave * rng.uniform(0.5, 8)).clip(-1, 1)[..., None] * 0.5 + 0.5
    low, high = (np.array(_colour(rng), np.float32) for _ in range(2))
    return Image.fromarray((low + (high - low) * mix).astype(np.uint8))


def _clutter(rng: np.random.Generator, side: int) -> Image.Image:
    """Overlapping boxes, ovals and wedges on a fade: edges and junctions of every kind."""
    image = _clouds(rng, side)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 12))):
        x, y = rng.uniform(0, side, 2)
        a, b = rng.uniform(0.03, 0.35, 2) * side
        kind = int(rng.integers(3))
        if kind == 0:
            pen.rectangle((x - a, y - b, x + a, y + b), fill=_colour(rng))
        elif kind == 1:
            pen.ellipse((x - a, y - b, x + a, y + b), fill=free_colour("circle", rng))
        else:
            corners = rng.normal(0, 1, (3, 2)) * (a, b) + (x, y)
            pen.polygon([(float(u), float(v)) for u, v in corners], fill=_colour(rng))
    return image


_KINDS: tuple[tuple[float, Callable[[np.random.Generator, int], Image.Image]], ...] = (
    (0.50, _handwriting),
    (0.12, _scribble),
    (0.10, _clouds),
    (0.06, _grain),
    (0.06, _waves),
    (0.16, _clutter),
)


def sample_texture(rng: np.random.Generator, size: int = 64) -> Image.Image:
    """An RGB picture of no scene, `size` x `size`; half are handwriting-like digits."""
    shares = np.cumsum([share for share, _ in _KINDS])
    make = _KINDS[min(int(np.searchsorted(shares, rng.random())), len(_KINDS) - 1)][1]
    return make(rng, size * SUPERSAMPLING).reduce(SUPERSAMPLING)
