"""The dataset card of a folder of token shards: README.md with the metadata block of the Hugging Face Hub.

Made from the indexes alone, so that it says what is there; it holds no clock and no path of ours.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

_WHAT = """\
Images and their spoken captions as discrete tokens, in tars for
[webdataset](https://github.com/webdataset/webdataset). Of each image there are `<key>.image.npy` (image
tokens, uint16 `[H, W]`), `<key>.units.npy` and `<key>.durations.npy` (speech units without neighbouring
repeats and how many frames each lasts, uint16, all captions one after the other), `<key>.json` (ids,
speakers, texts, and where each caption starts) and, in some sets, `<key>.jpg` (the picture)."""


@dataclass(frozen=True)
class About:
    """What tokens cannot say of themselves. licence: an identifier of the Hub ("cc-by-4.0") or "unknown"."""

    title: str
    licence: str
    description: str = ""
    citation: str = ""


def dataset_card(about: About, indexes: Mapping[str, dict[str, Any]]) -> str:
    """Markdown with YAML metadata. indexes: split -> index, at least one."""
    parts = [_front_matter(about, indexes), f"# {about.title}", about.description.strip(), _WHAT]
    parts += [_table(indexes), _tokenizers(indexes), _loading(indexes), _licence(about)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(about: About, indexes: Mapping[str, dict[str, Any]]) -> str:
    num_samples = sum(index["totals"]["samples"] for index in indexes.values())
    size = next((word for limit, word in _SIZES if num_samples < limit), "1M<n<10M")
    lines = [
        "---",
        f"license: {about.licence}",
        f"pretty_name: {json.dumps(about.title, ensure_ascii=False)}",
    ]
    lines += ["tags:", "- webdataset", "- image-to-speech", "- discrete-speech-units", "- image-tokens"]
    lines += ["size_categories:", f"- {size}", "configs:", "- config_name: default", "  data_files:"]
    for split in indexes:
        lines += [f"  - split: {split}", f"    path: {split}/*.tar"]
    return "\n".join([*lines, "---"])


def _table(indexes: Mapping[str, dict[str, Any]]) -> str:
    lines = [
        "| split | samples | images | captions | hours | units | frames | shards | MB | left out |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for split, index in indexes.items():
        totals = index["totals"]
        megabytes = sum(shard["filesize"] for shard in index["shards"]) / 1e6
        cells = [split, *(f"{totals[name]:,}" for name in ("samples", "images", "captions"))]
        cells += [f"{totals['seconds'] / 3600:.2f}", f"{totals['units']:,}", f"{totals['frames']:,}"]
        cells += [str(len(index["shards"])), f"{megabytes:.1f}", str(sum(index["rejects"].values()))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tokenizers(indexes: Mapping[str, dict[str, Any]]) -> str:
    lines = ["## Tokenizers", ""]
    for name, about in next(iter(indexes.values()))["tokenizers"].items():
        if about is not None:
            lines.append(f"- **{name}** `{about['fingerprint']}`, vocabulary of {about['vocab']:,} ids")
            facts = {key: about[key] for key in sorted(about) if key not in ("fingerprint", "vocab")}
            lines += [f"  - {key}: `{json.dumps(value, sort_keys=True)}`" for key, value in facts.items()]
    return "\n".join(lines)


def _loading(indexes: Mapping[str, dict[str, Any]]) -> str:
    split = next(iter(indexes))
    last = indexes[split]["shards"][-1]["url"].removesuffix(".tar")
    first = indexes[split]["shards"][0]["url"].removesuffix(".tar")
    return f"""## Loading

With stock webdataset and its default decoders:

```python
import numpy as np
import webdataset

for sample in webdataset.WebDataset("{split}/{{{first}..{last}}}.tar", shardshuffle=False).decode():
    image = sample.get("image.npy")              # uint16 [H, W]; absent where there is no picture
    for caption in sample["json"]["captions"]:
        here = slice(caption["offset"], caption["offset"] + caption["num_units"])
        units, durations = sample["units.npy"][here], sample["durations.npy"][here]
        frames = np.repeat(units, durations)     # one unit a frame
```

`{split}/index.json` lists the shards with their hashes; `wids.ShardListDataset("{split}/index.json")` gives
random access. `im2speech tokens verify` checks everything."""


def _licence(about: About) -> str:
    words = "" if about.licence != "unknown" else " Nobody said under which licence the source may be used."
    citation = f"\n\n## Citation\n\n{about.citation.strip()}" if about.citation.strip() else ""
    return f"## Licence\n\n`{about.licence}`.{words}{citation}"
