"""Writes what evaluation found: numbers for programs, sound for ears, plots for DVC, and the report.

metrics.json        {split: {rung: {metric: number, metric_ci: [low, high], num_items}}}
predictions.jsonl   one image a line: key, split, units, transcript, references, and the other rungs'
audio/              <split>/<rung>/<key or caption id>.wav, 16 kHz
report/index.html   everything in one file
plots/              bleu4.csv, wer.csv, attributes.csv: one bar a line
"""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.ladder import Metrics, Utterance
from pipeline.evaluation.metrics import word_errors
from pipeline.evaluation.recogniser import SAMPLE_RATE
from pipeline.evaluation.report import (
    METRICS,
    ReportItem,
    SplitReport,
    Voice,
    choose_items,
    picture_bytes,
    render_report,
)
from pipeline.files import write_json, write_jsonl, write_text
from pipeline.manifest import Row
from pipeline.media import write_wav

_ATTRIBUTES = ("colour", "shape", "size", "relation", "digit", "all", "exact")


@dataclass(frozen=True)
class Results:
    """All that was found: {split: {rung: utterances}}, {split: {rung: metrics}}, recognisers (first: the one that
    counts) and sentences for the reader."""

    spoken: Mapping[str, Mapping[str, Sequence[Utterance]]]
    metrics: Mapping[str, Mapping[str, Metrics]]
    recognisers: Sequence[str]
    notes: Sequence[str]


def write_outputs(out: Path, results: Results, *, root: Path, num_report_items: int, seed: int) -> None:
    """Write everything into `out`; audio, report and plots of an earlier run are removed first. `root` holds the
    pictures of the rows."""
    for folder in ("audio", "report", "plots"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    for split, rungs in results.spoken.items():
        for rung, utterances in rungs.items():
            if rung != "ground_truth":  # those lie in the corpus already
                for utterance in utterances:
                    if not len(utterance.waveform) and utterance.units is None:
                        continue  # a transcript without sound
                    write_wav(out / "audio" / split / rung / f"{utterance.id}.wav", utterance.waveform, SAMPLE_RATE)
    records = [r for split, rungs in results.spoken.items() for r in _records(split, rungs, results.recognisers)]
    write_jsonl(out / "predictions.jsonl", records)
    for name, text in plot_files(results.metrics).items():
        write_text(out / "plots" / name, text)
    splits = [_split_report(split, results, root, num_report_items, seed) for split in results.spoken]
    write_text(out / "report" / "index.html", render_report("Pictures that speak", splits, results.notes))
    write_json(out / "metrics.json", results.metrics)


def summary_lines(metrics: Mapping[str, Mapping[str, Metrics]]) -> list[str]:
    """A line a rung with the figures that matter most."""
    lines = []
    for split, rungs in metrics.items():
        for rung, found in rungs.items():
            shown = [f"{name} {found[name]}" for name in (*METRICS, "exact_ctc") if name in found]
            wanted = ("wer", "wer_ctc", "bleu4", "cider", *_ATTRIBUTES, "exact_ctc")
            lines.append(f"{split} {rung}: " + ", ".join(text for text in shown if text.split()[0] in wanted))
    return lines


def plot_files(metrics: Mapping[str, Mapping[str, Metrics]]) -> dict[str, str]:
    """{file name: CSV text} for `dvc plots`: a column for the bar's label, one for its value and its interval."""
    files = {}
    for file, names in (("bleu4", ("bleu4",)), ("wer", ("wer", "wer_ctc")), ("attributes", _ATTRIBUTES)):
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["bar", "split", "rung", "metric", "value", "low", "high"])
        for split, rungs in metrics.items():
            for rung, found in rungs.items():
                for name in names:
                    if name in found:
                        label = f"{split} {rung}" + (f" {name}" if len(names) > 1 else "")
                        interval = found.get(f"{name}_ci")
                        low, high = interval if isinstance(interval, list) else ("", "")
                        writer.writerow([label, split, rung, name, found[name], low, high])
        files[f"{file}.csv"] = stream.getvalue()
    return files


def _by_row(rungs: Mapping[str, Sequence[Utterance]]) -> list[tuple[Row, dict[str, list[Utterance]]]]:
    """Utterances gathered by image, images in the order in which they first come."""
    rows: dict[str, tuple[Row, dict[str, list[Utterance]]]] = {}
    for rung, utterances in rungs.items():
        for utterance in utterances:
            rows.setdefault(utterance.row.key, (utterance.row, {}))[1].setdefault(rung, []).append(utterance)
    return list(rows.values())


def _records(split: str, rungs: Mapping[str, Sequence[Utterance]], recognisers: Sequence[str]) -> list[dict[str, Any]]:
    def heard(utterance: Utterance) -> dict[str, Any]:
        names = zip(("", *(f"_{name}" for name in recognisers[1:])), recognisers, strict=True)
        return {f"transcript{suffix}": utterance.transcripts[name] for suffix, name in names}

    records = []
    for row, voices in _by_row(rungs):
        record: dict[str, Any] = {"key": row.key, "split": split}
        record["image"] = row.image.path if row.image else None
        for rung, utterances in voices.items():
            record["references"] = utterances[0].references
            if rung == "prediction":
                units = utterances[0].units
                record.update({"units": [] if units is None else units.tolist(), **heard(utterances[0])})
            else:
                record[rung] = [{"id": u.id, "text": u.text, **heard(u)} for u in utterances]
        records.append(record)
    return records


def _split_report(split: str, results: Results, root: Path, number: int, seed: int) -> SplitReport:
    rows = _by_row(results.spoken[split])
    errors = [_error(voices, results.recognisers[0]) for _, voices in rows]
    groups = {
        heading: [_item(split, *rows[place], errors[place], results.recognisers, root) for place in places]
        for heading, places in choose_items(errors, number, seed).items()
    }
    return SplitReport(split, results.metrics[split], groups)


def _error(voices: Mapping[str, Sequence[Utterance]], name: str) -> float:
    """Word errors of an image in per cent: of the prediction, or of the highest rung that there is."""
    for rung in ("prediction", "resynthesis", "ground_truth"):
        if rung in voices:
            first = voices[rung][0]
            texts = [first.text] if first.text else first.references
            errors = word_errors([first.transcripts[name]], [texts]).per_item()
            return float(errors[0]) if len(errors) else 0.0
    return 0.0


def _item(
    split: str,
    row: Row,
    voices: Mapping[str, Sequence[Utterance]],
    error: float,
    recognisers: Sequence[str],
    root: Path,
) -> ReportItem:
    shown = []
    for rung in ("prediction", "ground_truth", "resynthesis"):  # the result first
        for utterance in voices.get(rung, [])[:1]:
            shown.append(
                Voice(
                    rung,
                    utterance.waveform,
                    SAMPLE_RATE,
                    utterance.transcripts[recognisers[0]],
                    utterance.transcripts["ctc"] if "ctc" in recognisers[1:] else None,
                    [utterance.text] if utterance.text else utterance.references,
                    ""
                    if rung == "ground_truth" or not len(utterance.waveform)
                    else f"../audio/{split}/{rung}/{utterance.id}.wav",
                )
            )
    references = next((list(utterances[0].references) for utterances in voices.values()), [])
    # Somebody else's transcripts can be scored where the pictures are not.
    picture = picture_bytes(root / row.image.path) if row.image and (root / row.image.path).exists() else None
    return ReportItem(row.key, picture, references, shown, error)
