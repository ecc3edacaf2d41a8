"""Caption-like English with the punctuation that people put into captions: 500 transcripts, 5 references each."""

import numpy as np

_WHO = ["a man", "two dogs", "A woman's hand", "Several people", "an old-fashioned train", "The cat", "3 kids", "A boy"]
_DOES = ["rides", "is looking at", "doesn't see", "stands next to", "plays with", "can't reach", "jumps over"]
_WHAT = ["a brown horse", 'the "STOP" sign', "a half-eaten pizza", "it's bowl", "a t-shirt (blue)", "some kites"]
_WHERE = ["on the beach.", "in the snow !", "near St. Paul's", "at 5 p.m.", "beside a table, a cup and a chair", "."]


def sentence(rng: np.random.Generator) -> str:
    words = [str(rng.choice(part)) for part in (_WHO, _DOES, _WHAT, _WHERE)]
    return " ".join(words)


def corpus(number: int = 500, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Transcripts as a recogniser writes them (a few empty), and five to six references each, duplicates among them."""
    rng = np.random.default_rng(seed)
    references = [[sentence(rng) for _ in range(5 + int(rng.random() < 0.2))] for _ in range(number)]
    transcripts = []
    for texts in references:
        words = "".join(c for c in str(rng.choice(texts)) if c.isalnum() or c in " '").upper().split()
        kept = [word for word in words if rng.random() < 0.8]
        transcripts.append(" ".join(kept) if rng.random() < 0.98 else "")
    return transcripts, references
