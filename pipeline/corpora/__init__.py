"""Corpora by name: a reader turns a published layout into rows, `check` opens every file of them.

A new layout is one module with ``read(root, options) -> Iterator[UncheckedRow | Reject]`` and one line in
`CORPORA`. Nothing below this package imports torch.
"""

import importlib

from pipeline.corpora.unchecked import Reader
from pipeline.errors import InputError

CORPORA = {
    "flickr8k": "pipeline.corpora.flickr8k",
    "places": "pipeline.corpora.places",
    "spokencoco": "pipeline.corpora.spokencoco",
    "table": "pipeline.corpora.table",
}


def get_reader(name: str) -> Reader:
    """The reader of a corpus. InputError lists the known names."""
    if name not in CORPORA:
        raise InputError(f"unknown corpus {name!r}; known are {', '.join(sorted(CORPORA))}")
    reader: Reader = importlib.import_module(CORPORA[name]).read
    return reader
