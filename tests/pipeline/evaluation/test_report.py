"""The report: one well-formed file with nothing to fetch."""

import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from pipeline.evaluation.report import (
    ReportItem,
    SplitReport,
    Voice,
    choose_items,
    mark_differences,
    picture_bytes,
    render_report,
)

VOID = {"meta", "img", "br", "hr", "rect", "path"}


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def _jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(stream, format="JPEG")
    return stream.getvalue()


def _page(seconds: float = 0.1) -> str:
    wave = np.zeros(int(16000 * seconds), np.float32)
    voices = [
        Voice("ground_truth", wave, 16000, "a red <star>", "a rad star", ["a red star"]),
        Voice("prediction", wave, 16000, "", None, ["a red star"], "../audio/test/prediction/k.wav"),
    ]
    items = [ReportItem("k&1", _jpeg(), ["a red star"], voices, 10.0), ReportItem("k2", None, [], voices[:1], 0.0)]
    metrics = {
        "ground_truth": {"wer": 1.0, "wer_ci": [0.0, 2.0], "bleu4": 99.0, "num_items": 2},
        "prediction": {"bleu4": 90.0, "bleu4_ci": [80.0, 95.0], "exact_ctc": 3.0, "num_items": 2},
    }
    return render_report("A title", [SplitReport("test", metrics, {"All": items})], ["A note <with> marks."])


def test_it_is_well_formed_and_self_contained() -> None:
    page = _page()
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(source.startswith(("data:", "#")) for source in checker.sources)
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert "k&amp;1" in page and "A note &lt;with&gt; marks." in page
    assert page == _page()


def test_sound_that_does_not_fit_is_linked() -> None:
    page = _page(seconds=700)  # 22 MB each
    assert "../audio/test/prediction/k.wav" in page
    assert len(page) < 25_000_000


def test_differences_are_marked() -> None:
    assert mark_differences("a red star", ["the blue cross", "a red star"]) == "a red star"
    assert mark_differences("a rad star", ["a red star"]) == "a <mark>rad</mark> <del>red</del> star"
    assert mark_differences("a star there", ["a red star here there"]) == "a <del>red</del> star <del>here</del> there"
    assert mark_differences("a red star is", ["a red star"]) == "a red star <mark>is</mark>"
    assert mark_differences("", ["a"]) == "<em>nothing heard</em>"
    assert mark_differences("<b>", []) == "&lt;b&gt;"


def test_worst_and_best_are_shown_and_some_drawn() -> None:
    errors = [float(i % 50) for i in range(100)]
    groups = choose_items(errors, 12, seed=3)
    shown = [place for places in groups.values() for place in places]
    assert len(shown) == len(set(shown)) == 12
    assert errors[groups["Furthest off"][0]] == 49 and errors[groups["Closest"][0]] == 0
    assert choose_items([3.0, 5.0], 12, seed=0) == {"All items, worst first": [1, 0]}


def test_pictures_are_made_small(tmp_path) -> None:  # type: ignore[no-untyped-def]
    Image.new("RGBA", (900, 300)).save(tmp_path / "wide.png")
    with Image.open(io.BytesIO(picture_bytes(tmp_path / "wide.png"))) as image:
        assert image.size == (256, 85) and image.format == "JPEG"
