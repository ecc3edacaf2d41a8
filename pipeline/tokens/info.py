"""Describes token shards in a terminal, from their indexes alone."""

import math
from collections.abc import Iterator, Mapping
from typing import Any


def describe(indexes: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Lines for a terminal: tokenizers once, then counts, hours and bit rate of every split."""
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
            rate = totals["units"] / totals["seconds"]
            bits = rate * math.log2(max(2, index["vocab"]["units"]))
            yield f"  {totals['units']:,} units in {totals['frames']:,} frames"
            yield f"  {rate:.1f} units/s, {bits:.0f} bit/s without durations"
        for reason, count in index["rejects"].items():
            yield f"  left out: {count} x {reason}"
