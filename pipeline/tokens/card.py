"""The dataset card of a folder of token shards: README.md with the metadata block of the Hugging Face Hub.

Made from the indexes and the statistics alone, so that it says what is there; it holds no clock and no path of ours.
What tokens cannot say of themselves (title, licence, source, citation) is `About`; `read_about` takes it back out of
a card, so that a card can be made anew when the shards change.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_UNKNOWN = " Nobody said under which licence the source may be used."

_WHAT = """\
Images and their spoken captions as discrete tokens, in tars for
[webdataset](https://github.com/webdataset/webdataset). Of each image there are `<key>.image.npy` (image
tokens, uint16 `[H, W]`), `<key>.units.npy` and `<key>.durations.npy` (speech units without neighbouring
repeats and how many frames each lasts, uint16, all captions one after the other), `<key>.json` (ids,
speakers, texts, and where each caption starts) and, in some sets, `<key>.jpg` (the picture)."""

_CARRIED = """\
`tokenizers/` holds the codebook that made the units and the image tokenizer's codebook, where this set carries
them: enough to train on. To hear or to see tokens takes a vocoder and an image decoder of the same fingerprints."""


@dataclass(frozen=True)
class About:
    """What tokens cannot say of themselves. licence: an identifier of the Hub ("cc-by-4.0") or "unknown"."""

    title: str
    licence: str
    description: str = ""
    citation: str = ""


def dataset_card(
    about: About,
    indexes: Mapping[str, dict[str, Any]],
    statistics: Mapping[str, Any] | None = None,
    *,
    picture: bool = True,
) -> str:
    """Markdown with YAML metadata.

    indexes: split -> index, at least one; statistics: as statistics.json has them; picture: show their drawing, which
    the set then has to hold.
    """
    parts = [_front_matter(about, indexes), f"# {about.title}", about.description.strip(), _WHAT]
    parts += [
        _table(indexes),
        _figures(statistics or {}, picture),
        _tokenizers(indexes),
        _loading(indexes),
        _licence(about),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def read_about(card: str) -> About:
    """What somebody said of the source, out of a card that `dataset_card` made (an edited one as far as it goes)."""
    _, _, rest = card.partition("---\n")
    front, _, body = rest.partition("\n---\n")
    try:
        values = yaml.safe_load(front)
    except yaml.YAMLError:
        values = None
    values = values if isinstance(values, dict) else {}
    title = str(values.get("pretty_name", "Image and speech tokens"))
    description = re.search(rf"^# {re.escape(title)}\n\n(.*?)(?={re.escape(_WHAT)})", body, re.M | re.S)
    citation = re.search(r"^## Citation\n\n(.*)\Z", body, re.M | re.S)
    return About(
        title,
        str(values.get("license", "unknown")),
        description.group(1).strip() if description else "",
        citation.group(1).strip() if citation else "",
    )


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
    for split, index in indexes.items():
        lines += [f"  - split: {split}", f"    path: {split}/*{suffix(index)}"]
    return "\n".join([*lines, "---"])


def suffix(index: Mapping[str, Any]) -> str:
    """How the names of a split's shards end: .tar or .tar.gz."""
    return ".tar.gz" if any(shard["url"].endswith(".gz") for shard in index["shards"]) else ".tar"


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


def _figures(statistics: Mapping[str, Any], picture: bool) -> str:
    """The table of statistics; nothing without any."""
    if not statistics.get("splits"):
        return ""
    lines = [
        "## Statistics",
        "",
        "| split | units used | perplexity | image tokens used | perplexity | units a caption | bit/s | entropy, MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for split, found in statistics["splits"].items():
        cells = [split]
        for name in ("units", "image_tokens"):
            cells += [f"{found[name]['used']:,} of {found[name]['vocab']:,}", f"{found[name]['perplexity']:.1f}"]
        spread = found["units_per_caption"]
        cells.append(f"{spread['median']:.0f} ({spread['min']:.0f} to {spread['max']:.0f})" if spread else "")
        cells.append(f"{found['bits_per_second']['entropy_with_durations']:.0f}")
        cells.append(f"{found['bytes']['entropy_bound'] / 1e6:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Perplexity and entropy are of single tokens; bit/s counts units with durations, by entropy. A caption",
    ]
    lines += ["has its median length, and in brackets the shortest and the longest. More is in `statistics.json`."]
    for pair, shared in statistics.get("across_splits", {}).items():
        lines += ["", f"Both {pair.replace(', ', ' and ')} hold {shared['images']:,} images and {shared['captions']:,}"]
        lines.append("captions that are equal token for token.")
    if picture:
        lines += ["", "![Usage of ids and lengths of captions](plots/statistics.svg)"]
    return "\n".join(lines)


def _tokenizers(indexes: Mapping[str, dict[str, Any]]) -> str:
    lines = ["## Tokenizers", ""]
    for name, about in next(iter(indexes.values()))["tokenizers"].items():
        if about is not None:
            lines.append(f"- **{name}** `{about['fingerprint']}`, vocabulary of {about['vocab']:,} ids")
            facts = {key: about[key] for key in sorted(about) if key not in ("fingerprint", "vocab")}
            lines += [f"  - {key}: `{json.dumps(value, sort_keys=True)}`" for key, value in facts.items()]
    return "\n".join([*lines, "", _CARRIED])


def _loading(indexes: Mapping[str, dict[str, Any]]) -> str:
    split, index = next(iter(indexes.items()))
    end = suffix(index)
    first, last = (index["shards"][place]["url"].removesuffix(end) for place in (0, -1))
    numbers = first if first == last else f"{{{first}..{last}}}"
    access = (
        "The shards are compressed: there is no random access by `wids`."
        if end == ".tar.gz"
        else f'`wids.ShardListDataset("{split}/index.json")` gives random access.'
    )
    return f"""## Loading

With stock webdataset and its default decoders:

```python
import numpy as np
import webdataset

for sample in webdataset.WebDataset("{split}/{numbers}{end}", shardshuffle=False).decode():
    image = sample.get("image.npy")              # uint16 [H, W]; absent where there is no picture
    for caption in sample["json"]["captions"]:
        here = slice(caption["offset"], caption["offset"] + caption["num_units"])
        units, durations = sample["units.npy"][here], sample["durations.npy"][here]
        frames = np.repeat(units, durations)     # one unit a frame
```

With `datasets`: `load_dataset("webdataset", data_files={{"{split}": "{split}/*{end}"}})`.
`{split}/index.json` lists the shards with their hashes. {access}
With im2speech, `im2speech tokens pull URL` copies and checks a set, `im2speech tokens verify` checks everything again,
and `im2speech train --shards DIR` trains on it."""


def _licence(about: About) -> str:
    words = "" if about.licence != "unknown" else _UNKNOWN
    citation = f"\n\n## Citation\n\n{about.citation.strip()}" if about.citation.strip() else ""
    return f"## Licence\n\n`{about.licence}`.{words}{citation}"
