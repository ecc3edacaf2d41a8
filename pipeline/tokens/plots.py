"""Draws the statistics of a set as one SVG for its card: bars only, no library, the same bytes everywhere."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, GAP, TOP, LEFT = 250, 90, 30, 50, 20
_STYLE = "text{font:11px sans-serif;fill:#333}.b{fill:#4878a8}.a{stroke:#999}"


def statistics_svg(statistics: Mapping[str, Any]) -> str:
    """A row of panels a split: usage of units and image tokens, lengths of captions. statistics: as statistics.json."""
    parts: list[str] = []
    for row, (split, found) in enumerate(statistics["splits"].items()):
        panels = []
        for name, title in (("units", "units, most to least used"), ("image_tokens", "image tokens, the same")):
            use = found[name]
            if use["total"]:
                words = f"{title}: {use['used']:,} of {use['vocab']:,}"
                panels.append((words, use["ranked_shares"], "1", f"{use['vocab']:,}"))
        if spread := found["units_per_caption"]:
            counts, width = spread["histogram"]["counts"], spread["histogram"]["bin_width"]
            words = f"units a caption: median {spread['median']:.0f}"
            panels.append((words, counts, "0", f"{len(counts) * width - 1:,}"))
        top = TOP + row * (HEIGHT + TOP + GAP)
        parts.append(f'<text x="{LEFT}" y="{top - 26}" font-weight="bold">{escape(split)}</text>')
        for column, panel in enumerate(panels):
            parts += _panel(LEFT + column * (WIDTH + GAP), top, *panel)
    width = LEFT + 3 * (WIDTH + GAP)
    height = len(statistics["splits"]) * (HEIGHT + TOP + GAP) + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    ground = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", ground, *parts, "</svg>"]) + "\n"


def _panel(left: int, top: int, title: str, values: Sequence[float], first: str, last: str) -> list[str]:
    """One bar chart with what its first and last bar stand for."""
    highest, step = max(values), WIDTH / len(values)
    bars = [f'<text x="{left}" y="{top - 8}">{escape(title)}</text>']
    for place, value in enumerate(values):
        height = HEIGHT * value / highest if highest else 0
        x, y = left + place * step, top + HEIGHT - height
        bars.append(f'<rect class="b" x="{x:.1f}" y="{y:.1f}" width="{0.85 * step:.1f}" height="{height:.1f}"/>')
    floor = top + HEIGHT
    bars.append(f'<line class="a" x1="{left}" y1="{floor}" x2="{left + WIDTH}" y2="{floor}"/>')
    bars.append(f'<text x="{left}" y="{floor + 14}">{first}</text>')
    bars.append(f'<text x="{left + WIDTH}" y="{floor + 14}" text-anchor="end">{last}</text>')
    return bars
