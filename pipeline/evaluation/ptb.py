"""Words as coco-caption counts them: Penn Treebank tokens, lower case, without a list of punctuation marks.

Takes texts, gives each as tokens with a space between. coco-caption runs Stanford's tokenizer, a Java program
whose jar pycocoevalcap brings; `tokenise_java` runs the same program with the same flags. Where there is no
Java, `tokenise_python` follows the treebank's conventions in Python: written from what is published about them
and from what the program answers. On English captions the two agree; on everything that one can type they do
not (addresses, smileys, rare abbreviations). docs/evaluation.md says what was compared, and every result is
labelled with the one that made it: `ptb (java)` or `ptb (python)`.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import InputError

JAR = "stanford-corenlp-3.4.1.jar"
JAVA, PYTHON = "ptb (java)", "ptb (python)"

# What coco-caption takes away after tokenising. Its list has brackets in capitals, but tokens are lower case by
# then, so `-lrb-` stays a word: that is part of the published scores.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CHARACTERS = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a3": "#", "\u20ac": "$", "\u00a0": " "}
    | {"\u00bc": " 1/4", "\u00bd": " 1/2", "\u00be": " 3/4", "\u2013": "--", "\u2014": "--", "\u2026": "..."}
)
_TOKEN = re.compile(
    r"""
      (?:https?://|www\.)[^\s"<>]*[\w/]                             # addresses
    | [\w.+-]+@[^\W_]+(?:[.-][^\W_]+)+ | [@\#][^\W\d_]\w*             # post, names, tags
    | </?[^\W\d_]\w*> | [^\W\d_]+\+\+                                # marks of a page, c++
    | can(?=not(?!\w)) | (?:gim|lem)(?=me(?!\w)) | (?:gon|wan)(?=na(?!\w)) | got(?=ta(?!\w))
    | 't(?=is(?!\w)|was(?!\w)) | y'(?=all(?!\w))                     # words of two words
    | '(?:s|m|d|re|ve|ll)(?!\w) | n't(?!\w)                          # short forms
    | 'n' | '(?:n|em|til|cause)(?!\w) | '\d0s(?!\w)                  # words with their start gone
    | (?:mr|mrs|ms|messrs|dr|prof|jr|sr|st|mt|ft|ave|blvd|rd|vs|etc|inc|ltd|corp|co|bros|dept|bldg|rev
        |gen|sen|gov|lt|col|capt|sgt|jan|feb|aug|sept|oct|nov|dec|mon|tues|thurs|fri)\.(?!\w) | no\.(?=\ ?\d)
    | (?:[^\W\d_]\.)+[^\W\d_](?!\w)\.?                               # u.s., p.m.
    | [a-hj-z]\.(?=\s+["\w])                                          # an initial
    | \d+:\d\d(?=[ap]m(?!\w))
    | \d*(?:[.,:/]\d+)+(?:-[^\W_]+)*(?:st|nd|rd|th)?(?!\w) | \d*[.,]\d+ # numbers, times, fractions
    | [^\W\d_]+(?:\.[^\W\d_]+)+(?!\w)                                # end.Start
    | (?-i:[A-Z]+(?:&[A-Z]+)+)(?!\w) | w/o(?!\w)
    | (?:ma'am|[dol]'[^\W\d_]+)(?!\w)
    | (?:(?!n't(?!\w))\w)+ (?:[-/](?=[^\W_])(?:(?!n't(?!\w))\w)+)*
    | \.{3,} | (?:\.\ ){2,}\. | [?!]{2,} | --+ | ``|'' | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenise_python(texts: Sequence[str]) -> list[str]:
    """Tokens of each text, a space between."""
    return [_line(text) for text in texts]


def _line(text: str) -> str:
    tokens = []
    for token in _TOKEN.findall(text.translate(_CHARACTERS)):
        token = _BRACKETS.get(token, "''" if token == '"' else token.lower())
        token = "..." if re.fullmatch(r"\.[. ]+", token) else "--" if re.fullmatch("--+", token) else token
        if token not in PUNCTUATION:
            tokens.append(token)
    return " ".join(tokens)


def java_jar() -> Path | None:
    """Where the tokenizer's jar lies, or None without it or without the command `java`."""
    spec = find_spec("pycocoevalcap")
    places = spec.submodule_search_locations if spec and shutil.which("java") else None
    found = [path for place in places or () if (path := Path(place, "tokenizer", JAR)).exists()]
    return found[0] if found else None


def tokenise_java(texts: Sequence[str]) -> list[str]:
    """The same by Stanford's program, all texts in one run. InputError when there is no Java, or it fails."""
    jar = java_jar()
    if jar is None:
        raise InputError("the tokenizer of coco-caption needs a Java runtime (the command `java`)")
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "lines.txt")
        lines.write_text("\n".join(" ".join(text.split()) for text in texts), encoding="utf-8")
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
        done = subprocess.run([*command, "-preserveLines", "-lowerCase", str(lines)], capture_output=True, check=False)
    answers = done.stdout.decode("utf-8").split("\n")[: len(texts)]
    if done.returncode or len(answers) != len(texts):
        raise InputError(f"Stanford's tokenizer failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return [" ".join(word for word in line.split() if word not in PUNCTUATION) for line in answers]
