"""Describes token shards in a terminal, from their indexes and their statistics."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BARS = " ▁▂▃▄▅▆▇█"


def describe(indexes: Mapping[str, dict[str, Any]], statistics: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Lines for a terminal: tokenizers once, then counts, hours, bit rate and histograms of every split.

    statistics: what statistics.json holds; without it the figures that the indexes alone can give.
    """
    first = next(iter(indexes.values()))
    for name, about in first["tokenizers"].items():
        if about is None:
            yield f"{name}: none"
            continue
        facts = ", ".join(f"{key} {about[key]}" for key in sorted(about) if key not in ("fingerprint", "vocab"))
        yield f"{name}: {about['fingerprint']}, {about['vocab']:,} ids; {facts}"
    for split, index in indexes.items():
        totals = index["totals"]
        size = sum(shard["filesize"] for shard in index["shards"])
        yield f"{split} [{index['fingerprint']}]: {len(index['shards'])} shards, {size / 1e6:.1f} MB"
        yield (
            f"  {totals['samples']:,} samples, {totals['images']:,} images, {totals['captions']:,} captions, "
            f"{totals['seconds'] / 3600:.2f} h of speech"
        )
        if totals["seconds"] and totals["units"]:
            yield f"  {totals['units']:,} units in {totals['frames']:,} frames"
        for reason, count in index["rejects"].items():
            yield f"  left out: {count} x {reason}"
        found = (statistics or {}).get("splits", {}).get(split)
        if found and totals["captions"]:
            yield from _figures(found)
    for pair, counts in (statistics or {}).get("across_splits", {}).items():
        yield f"in both {pair}: {counts['images']:,} images, {counts['captions']:,} captions, token for token"


def _figures(found: Mapping[str, Any]) -> Iterator[str]:
    rates, sizes = found["bits_per_second"], found["bytes"]
    yield (
        f"  {found['units_per_second']:.1f} units/s; {rates['fixed_length']:.0f} bit/s as plain ids, "
        f"{rates['entropy']:.0f} by entropy, {rates['entropy_with_durations']:.0f} with durations"
    )
    yield f"  on disk {sizes['on_disk']:,} bytes; entropy of the tokens {sizes['entropy_bound']:,} bytes"
    for name, word in (("units", "units"), ("image_tokens", "image tokens")):
        use = found[name]
        if use["total"]:
            yield f"  {word}: {use['used']:,} of {use['vocab']:,} ids used, perplexity {use['perplexity']:.1f}"
            yield f"    most to least used |{sparkline(use['ranked_shares'])}|"
    for name, word in (("units_per_caption", "units a caption"), ("frames_per_caption", "frames a caption")):
        spread = found[name]
        counts, width = spread["histogram"]["counts"], spread["histogram"]["bin_width"]
        yield f"  {word}: {spread['min']:.0f} to {spread['max']:.0f}, median {spread['median']:.0f}"
        yield f"    0 |{sparkline(counts)}| {len(counts) * width - 1}"
    shown = ", ".join(f"{count} ({number:,} images)" for count, number in found["captions_per_image"].items())
    yield f"  captions an image: {shown}"
    twice = found["duplicates"]
    if twice["images"] or twice["captions"]:
        yield f"  said or shown more than once: {twice['captions']:,} captions, {twice['images']:,} images"


def sparkline(values: Sequence[float]) -> str:
    """One character a value, its height in eighths of the highest; what is not zero is never blank."""
    top = max(values, default=0)
    if top <= 0:
        return " " * len(values)
    return "".join(_BARS[0 if value <= 0 else max(1, round(8 * value / top))] for value in values)
