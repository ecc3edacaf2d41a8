"""The report: one HTML file that a stranger can open, look at and listen to, with nothing to fetch.

Takes scores and items (pictures, waveforms, transcripts), gives HTML text: style, drawings, pictures and
sound inside the file, no script, light or dark as the reader's screen is. It holds no clock and no path of
the machine, so equal results give equal bytes.
"""

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.ladder import Metrics
from pipeline.evaluation.report_style import STYLE

RUNGS = {
    "ground_truth": ("Recordings", "The spoken captions of the corpus. What is wrong here is the recogniser's."),
    "resynthesis": (
        "Units, spoken again",
        "The same captions as speech units, spoken by the vocoder. What is lost here, the units lose.",
    ),
    "prediction": (
        "Spoken from the image",
        "The model looks at the picture and says units; the vocoder speaks them. This is the result.",
    ),
    "chance": (
        "Chance",
        "The predictions, scored against the captions of other pictures. What one gets without looking.",
    ),
}
METRICS = {
    "wer": "Word errors", "wer_ctc": "Strict ear", "bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3",
    "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "cider": "CIDEr", "meteor": "METEOR", "spice": "SPICE",
    "colour": "Colour", "shape": "Shape", "size": "Size", "relation": "Relation", "digit": "Digits",
    "all": "All attributes", "exact": "Exact", "uer": "Unit errors", "duration_error": "Duration error",
    "units_per_second": "Units a second (number)", "words_per_second": "Words a second (number)",
    "unit_distinct1": "Different units", "unit_distinct2": "Different pairs of units",
    "units_used": "Codebook used", "self_bleu4": "Self-BLEU-4 of samples",
}  # fmt: skip
ATTRIBUTES = ("colour", "shape", "size", "relation", "digit")
LOWER_IS_BETTER = ("wer", "wer_ctc")
MAX_BYTES = 22_000_000


@dataclass(frozen=True)
class Voice:
    """One way in which an image's caption was spoken. link: where the wav lies, relative to the report."""

    rung: str
    waveform: npt.NDArray[np.float32]
    sample_rate: int
    transcript: str
    strict_transcript: str | None = None
    compared_with: Sequence[str] = ()
    link: str = ""


@dataclass(frozen=True)
class ReportItem:
    """One image: picture as JPEG bytes (None: no picture), its captions, its voices, and its error in per cent."""

    key: str
    picture: bytes | None
    references: Sequence[str]
    voices: Sequence[Voice]
    error: float


@dataclass(frozen=True)
class SplitReport:
    """One split: {rung: metrics}, and groups of items under a heading each."""

    name: str
    metrics: Mapping[str, Metrics]
    groups: Mapping[str, Sequence[ReportItem]]


@dataclass
class _Budget:
    """Bytes of sound that may still go into the file."""

    left: int = field(default=MAX_BYTES)

    def take(self, size: int) -> bool:
        self.left -= size
        return self.left >= 0


def choose_items(errors: Sequence[float], number: int, seed: int) -> dict[str, list[int]]:
    """Which items to show, of `number` in all: a third the worst, a third the best, the rest drawn by the seed."""
    order = sorted(range(len(errors)), key=lambda place: (errors[place], place))
    if len(order) <= number:
        return {"All items, worst first": order[::-1]}
    third = max(1, number // 3)
    best, worst, middle = order[:third], order[-third:][::-1], order[third:-third]
    wanted = max(0, min(number - 2 * third, len(middle)))
    drawn = np.random.default_rng(seed).choice(len(middle), size=wanted, replace=False)
    return {"Furthest off": worst, "Drawn at random": sorted(middle[i] for i in drawn), "Closest": best}


def render_report(title: str, splits: Sequence[SplitReport], notes: Sequence[str]) -> str:
    """The whole page. `notes` are sentences on how the numbers came about."""
    budget = _Budget()
    rungs = [rung for rung in RUNGS if any(rung in split.metrics for split in splits)]
    meanings = "".join(
        f"<li class='{rung}'><i class='dot'></i><span><b>{RUNGS[rung][0]}.</b> {RUNGS[rung][1]}</span></li>"
        for rung in rungs
    )
    body = "".join(_split_section(split, budget) for split in splits)
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes)
    links = " ".join(f"<a href='#{escape(split.name)}'>{escape(split.name)}</a>" for split in splits)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p class='lead'>A model looks at a picture and speaks, with no text "
        "in between. Recognisers write down what they hear; below, that is compared with what was said of the "
        "same picture.</p>"
        f"<ul class='rungs'>{meanings}</ul><nav>{links}</nav></header>"
        f"<main>{body}</main><footer><h2>How the numbers were made</h2><ul>{remarks}</ul></footer></body></html>\n"
    )


def _split_section(split: SplitReport, budget: _Budget) -> str:
    groups = "".join(
        f"<h3>{escape(heading)}</h3><div class='cards'>{''.join(_card(item, budget) for item in items)}</div>"
        for heading, items in split.groups.items()
    )
    return (
        f"<section id='{escape(split.name)}'><h2>{escape(split.name)}</h2>"
        f"<div class='charts'>{_charts(split.metrics)}</div>{_table(split.metrics)}{groups}</section>"
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _charts(metrics: Mapping[str, Metrics]) -> str:
    """A small bar chart each for the figures that matter most, and one of what the result gets right."""
    shown = [name for name in ("bleu4", "exact", "wer", "wer_ctc") if any(name in rung for rung in metrics.values())]
    charts = [_chart(name, metrics) for name in shown]
    result = next((rung for rung in ("prediction", "resynthesis", "ground_truth") if rung in metrics), "")
    attributes = [name for name in ATTRIBUTES if name in metrics.get(result, {})]
    if attributes:
        bars = [(METRICS[name], result, metrics[result], name) for name in attributes]
        chance = [metrics["chance"].get(name) if "chance" in metrics else None for name in attributes]
        title = f"What is right <small>%{', tick: chance' if 'chance' in metrics else ''}</small>"
        charts.append(_figure(title, bars, 100.0, chance))
    return "".join(charts)


def _chart(name: str, metrics: Mapping[str, Metrics]) -> str:
    bars = [("", rung, metrics[rung], name) for rung in RUNGS if name in metrics.get(rung, {})]
    better = "low is good" if name in LOWER_IS_BETTER else "high is good"
    top = max([100.0, *(_number(found[name]) for _, _, found, _ in bars)])
    return _figure(f"{METRICS[name]} <small>%, {better}</small>", bars, top, [None] * len(bars))


def _figure(title: str, bars: Sequence[tuple[str, str, Metrics, str]], top: float, ticks: Sequence[object]) -> str:
    """Bars (label, rung, metrics, metric) on a scale from 0 to `top`, whiskers at the interval, ticks where given."""
    drawn, left = [], 56 if any(label for label, *_ in bars) else 0
    width = 200 - left

    def at(value: float) -> float:
        return left + width * min(value, top) / top

    for place, ((label, rung, found, name), tick) in enumerate(zip(bars, ticks, strict=True)):
        value, y = _number(found[name]), 26 * place
        drawn.append(
            f"<text x='0' y='{y + 11}'>{escape(label)}</text>"
            f"<rect class='track' x='{left}' y='{y}' width='{width}' height='14' rx='3'/>"
            f"<rect class='bar {rung}' x='{left}' y='{y}' width='{at(value) - left:.1f}' height='14' rx='3'/>"
            f"<text x='208' y='{y + 11}'>{value:.1f}</text>"
        )
        interval = found.get(f"{name}_ci")
        if isinstance(interval, list):
            low, high = at(interval[0]), at(interval[1])
            edges = f"M{low:.1f} {y + 4}v6M{high:.1f} {y + 4}v6"
            drawn.append(f"<path class='whisker' d='M{low:.1f} {y + 7}H{high:.1f}{edges}'/>")
        if tick is not None:
            drawn.append(f"<path class='tick' d='M{at(_number(tick)):.1f} {y - 2}v18'/>")
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f"<svg viewBox='0 -3 250 {26 * len(bars)}' role='img'>{''.join(drawn)}</svg></figure>"
    )


def _table(metrics: Mapping[str, Metrics]) -> str:
    rungs = [rung for rung in RUNGS if rung in metrics]
    strict = {f"{name}_ctc": f"{label}, strict ear" for name, label in METRICS.items() if name != "wer"}
    labels = {name: label for name, label in {**METRICS, **strict}.items() if any(name in metrics[r] for r in rungs)}
    head = "".join(f"<th class='{rung}'><i class='dot'></i>{RUNGS[rung][0]}</th>" for rung in rungs)
    rows = []
    for name, label in labels.items():
        cells = []
        for rung in rungs:
            value, interval = metrics[rung].get(name), metrics[rung].get(f"{name}_ci")
            spread = f"<small>{interval[0]:.1f} to {interval[1]:.1f}</small>" if isinstance(interval, list) else ""
            cells.append(f"<td>{_number(value):.1f}{spread}</td>" if value is not None else "<td class='none'>-</td>")
        rows.append(f"<tr><th>{label}</th>{''.join(cells)}</tr>")
    numbers = "".join(f"<td>{metrics[rung].get('num_items', 0)}</td>" for rung in rungs)
    return (
        "<details class='numbers'><summary>All numbers, with 95 % intervals</summary><div class='scroll'><table>"
        f"<thead><tr><th>per cent</th>{head}</tr></thead><tbody>{''.join(rows)}"
        f"<tr class='count'><th>Utterances</th>{numbers}</tr></tbody></table></div></details>"
    )


def _card(item: ReportItem, budget: _Budget) -> str:
    picture = (
        f"<img alt='' src='{_data_uri('image/jpeg', item.picture)}'>" if item.picture else "<div class='blank'></div>"
    )
    voices = "".join(_voice(voice, budget) for voice in item.voices)
    said = f"<p class='ref'>{escape(item.references[0])}</p>" if item.references else ""
    if others := "".join(f"<li>{escape(text)}</li>" for text in item.references[1:]):
        said += f"<details><summary>{len(item.references) - 1} more captions</summary><ul>{others}</ul></details>"
    return (
        f"<article><div class='top'>{picture}<div class='said'><p class='key'>{escape(item.key)}</p>"
        f"{said}</div></div>{voices}</article>"
    )


def _voice(voice: Voice, budget: _Budget) -> str:
    sound = _wav(voice.waveform, voice.sample_rate) if len(voice.waveform) else b""
    if sound and budget.take(len(sound) * 4 // 3):
        player = f"<audio controls preload='none' src='{_data_uri('audio/wav', sound)}'></audio>"
    else:
        player = f"<a href='{escape(voice.link)}'>listen</a>" if voice.link else "<span class='none'>no sound</span>"
    marked = mark_differences(voice.transcript, voice.compared_with)
    strict = ""
    if voice.strict_transcript is not None:
        strict = f"<p class='strict'>{mark_differences(voice.strict_transcript, voice.compared_with)}</p>"
    return (
        f"<div class='voice {voice.rung}'><p class='who'><i class='dot'></i>{RUNGS[voice.rung][0]}</p>{player}"
        f"<p class='heard'>{marked}</p>{strict}</div>"
    )


def mark_differences(transcript: str, references: Sequence[str]) -> str:
    """HTML of a transcript with the words marked that the nearest reference does not have there, and those it
    misses shown struck through."""
    import jiwer

    references = [text for text in references if text]
    if not references:
        return escape(transcript) or "<em>nothing heard</em>"
    if not transcript:
        return "<em>nothing heard</em>"
    measured = [jiwer.process_words(text, transcript) for text in references]
    nearest = min(measured, key=lambda m: m.wer)
    wanted, heard = nearest.references[0], nearest.hypotheses[0]
    pieces = []
    for chunk in nearest.alignments[0]:
        missing = escape(" ".join(wanted[chunk.ref_start_idx : chunk.ref_end_idx]))
        words = escape(" ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]))
        if chunk.type == "equal":
            pieces.append(words)
        elif chunk.type == "delete":
            pieces.append(f"<del>{missing}</del>")
        elif chunk.type == "insert":
            pieces.append(f"<mark>{words}</mark>")
        else:
            pieces.append(f"<mark>{words}</mark> <del>{missing}</del>")
    return " ".join(pieces)


def picture_bytes(path: Path, longest_side: int = 256) -> bytes:
    """A picture as JPEG bytes, made smaller when its longer side has more pixels than `longest_side`."""
    from pipeline.media import read_image

    image = read_image(path)
    image.thumbnail((longest_side, longest_side))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=88)
    return stream.getvalue()


def _wav(waveform: npt.NDArray[np.float32], sample_rate: int) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.round(np.clip(waveform, -1.0, 1.0) * 32767.0).astype("<i2").tobytes())
    return stream.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
