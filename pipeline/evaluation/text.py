"""The one normalisation that every score rests on: what counts as a word.

References come upper-case and without punctuation (SpokenCOCO), as written (COCO, Flickr8k) or as
spoken (the demo); recognisers answer in lower or upper case. All of them pass through `normalise`
before anything is counted, so that no score can depend on who wrote the capitals.
"""

import re
import unicodedata
from collections.abc import Iterable

_QUOTES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "`": "'"})
_NOT_A_WORD = re.compile(r"[^a-z0-9' ]+")
_STRAY_APOSTROPHE = re.compile(r"(?<![a-z0-9])'+|'+(?![a-z0-9])")


def normalise(text: str) -> str:
    """Lower-case words separated by one space.

    Accents are dropped, an apostrophe inside a word stays ("it's"), every other character that is not
    a letter, a digit or a space becomes a space ("t-shirt" is two words, as it is when spoken).
    """
    plain = unicodedata.normalize("NFKD", text.translate(_QUOTES))
    plain = "".join(character for character in plain if not unicodedata.combining(character)).lower()
    return " ".join(_STRAY_APOSTROPHE.sub(" ", _NOT_A_WORD.sub(" ", plain)).split())


def vocabulary(texts: Iterable[str]) -> list[str]:
    """All different words of `texts` after normalisation, sorted."""
    return sorted({word for text in texts for word in normalise(text).split()})
