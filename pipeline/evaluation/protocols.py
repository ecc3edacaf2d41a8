"""How captions are scored: which references, what a word is, whose counting. Three ways, by name.

    plain        words as `text.normalise` leaves them, each different reference once, pycocoevalcap's BLEU, ROUGE-L
                 and CIDEr. The default: no score depends on punctuation or capitals, and none on Java.
    test         the paper's table: every caption as published, Penn Treebank tokens, coco-caption's scores.
    validation   the paper's figure while training: sacrebleu of lower-cased raw captions, punctuation included;
                 of every image as many captions as the image with fewest has. BLEU alone.

The same transcripts get different BLEUs by these three; docs/evaluation.md says by how much. Word errors and
attributes are counted on normalised words under every protocol.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.errors import InputError
from pipeline.evaluation import ptb
from pipeline.evaluation.metrics import Counted, JavaScorers, Pairs, coco_scores, normal_pairs, sacre_bleu
from pipeline.evaluation.text import normalise

NAMES = ("plain", "test", "validation")


@dataclass
class Protocol:
    """A protocol by its name, ready to score. `tokeniser` and `counted_by` are labels for reports."""

    name: str = "plain"
    tokeniser: str = "normalised words"
    counted_by: str = "pycocoevalcap"
    _tokens: dict[str, str] = field(default_factory=dict, repr=False)

    def describe(self) -> str:
        """One sentence for the report."""
        return f"Protocol `{self.name}`: {self.tokeniser}; captions are scored by {self.counted_by}."

    def prepare(self, texts: Iterable[str]) -> None:
        """Tokenise many texts in one go, for `scores` to find: starting Java takes a second."""
        new = sorted({text for text in texts} - set(self._tokens))
        if self.name == "test" and new:
            tokenise = ptb.tokenise_java if self.tokeniser == ptb.JAVA else ptb.tokenise_python
            self._tokens.update(zip(new, tokenise(new), strict=True))

    def pairs(self, transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> Pairs:
        """Raw texts as this protocol compares them. InputError for an item without a reference."""
        if self.name == "plain":
            return normal_pairs(transcripts, [dict.fromkeys(map(normalise, texts)) for texts in references])
        for place, texts in enumerate(references):
            if not any(text.strip() for text in texts):
                raise InputError(f"item {place} has no reference text to be compared with")
        if self.name == "validation":
            fewest = min((len(texts) for texts in references), default=0)
            lowered = [[text.strip().lower() for text in texts[:fewest]] for texts in references]
            return [(heard.strip().lower(), texts) for heard, texts in zip(transcripts, lowered, strict=True)]
        self.prepare([*transcripts, *(text for texts in references for text in texts)])
        return [
            (self._tokens[heard], [self._tokens[text] for text in texts])
            for heard, texts in zip(transcripts, references, strict=True)
        ]

    def scores(
        self, transcripts: Sequence[str], references: Sequence[Sequence[str]], java: JavaScorers | None = None
    ) -> dict[str, Counted]:
        """Scores of raw transcripts against raw references."""
        pairs = self.pairs(transcripts, references)
        if self.name == "validation":
            return sacre_bleu(pairs)
        return {**coco_scores(pairs), **(java.scores(pairs) if java else {})}


def make_protocol(name: str) -> Protocol:
    """The protocol of a name. `test` takes Stanford's tokenizer where there is a Java runtime, and says which."""
    if name == "plain":
        return Protocol()
    if name == "test":
        return Protocol(name, ptb.JAVA if ptb.java_jar() else ptb.PYTHON, "pycocoevalcap, as coco-caption")
    if name == "validation":
        return Protocol(name, "raw lower-cased text, sacrebleu's tokenizer 13a", "sacrebleu")
    raise InputError(f"protocol: {name!r} is unknown; known are {', '.join(NAMES)}")
