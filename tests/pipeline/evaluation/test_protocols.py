"""The protocols against the programs that papers ran: coco-caption's own evaluation, sacrebleu's own corpus_bleu."""

import shutil
from typing import Any

import numpy as np
import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from pipeline.errors import InputError
from pipeline.evaluation import ptb
from pipeline.evaluation.metrics import JavaScorers
from pipeline.evaluation.protocols import Protocol, make_protocol
from tests.pipeline.evaluation.captions import corpus

TRANSCRIPTS, REFERENCES = corpus()
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime")


def _as_coco(texts: list[str] | list[list[str]]) -> dict[int, list[dict[str, str]]]:
    groups = [[text] if isinstance(text, str) else text for text in texts]
    return {place: [{"caption": text} for text in group] for place, group in enumerate(groups)}


@needs_java
def test_500_captions_score_as_coco_caption_scores_them_with_difference_0() -> None:
    truth = PTBTokenizer().tokenize(_as_coco(REFERENCES))
    said = PTBTokenizer().tokenize(_as_coco(TRANSCRIPTS))
    theirs = {f"bleu{n}": v for n, v in enumerate(Bleu(4).compute_score(truth, said, verbose=0)[0], start=1)}
    theirs |= {"rouge_l": Rouge().compute_score(truth, said)[0], "cider": Cider().compute_score(truth, said)[0]}
    protocol = make_protocol("test")
    assert protocol.tokeniser == "ptb (java)"
    ours = protocol.scores(TRANSCRIPTS, REFERENCES)
    assert {name: score.value() for name, score in ours.items()} == {name: 100 * v for name, v in theirs.items()}
    assert 20 < ours["bleu4"].value() < 95


@needs_java
def test_python_words_are_javas_on_these_captions() -> None:
    texts = sorted({*TRANSCRIPTS, *(text for group in REFERENCES for text in group)})
    assert ptb.tokenise_python(texts) == ptb.tokenise_java(texts)
    in_python = Protocol("test", ptb.PYTHON).scores(TRANSCRIPTS, REFERENCES)
    in_java = Protocol("test", ptb.JAVA).scores(TRANSCRIPTS, REFERENCES)
    assert {n: s.value() for n, s in in_python.items()} == {n: s.value() for n, s in in_java.items()}


@pytest.mark.slow
@needs_java
def test_coco_captions_whole_evaluation_meteor_included(monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap import eval as theirs

    class Coco:
        """What COCOEvalCap asks of pycocotools' COCO."""

        def __init__(self, captions: dict[int, list[dict[str, str]]]) -> None:
            self.imgToAnns = captions

        def getImgIds(self) -> list[int]:
            return list(self.imgToAnns)

    monkeypatch.setattr(theirs, "Spice", Cider)  # SPICE downloads its models
    evaluation = theirs.COCOEvalCap(Coco(_as_coco(REFERENCES)), Coco(_as_coco(TRANSCRIPTS)))
    evaluation.evaluate()
    names: dict[str, Any] = {f"Bleu_{n}": f"bleu{n}" for n in range(1, 5)}
    names |= {"METEOR": "meteor", "ROUGE_L": "rouge_l", "CIDEr": "cider"}
    java = JavaScorers()
    ours = make_protocol("test").scores(TRANSCRIPTS, REFERENCES, java)
    assert {names[n]: 100 * v for n, v in evaluation.eval.items() if n in names} == {
        name: score.value() for name, score in ours.items() if name != "spice"
    }
    low, high = ours["meteor"].interval(200, seed=0)
    assert low < ours["meteor"].value() < high


def test_validation_is_sacrebleus_corpus_bleu() -> None:
    """As the paper's training script calls it: streams as `zip` leaves them, of the fewest references."""
    fewest = [[text.lower() for text in group] for group in REFERENCES]
    streams = list(zip(*fewest, strict=False))
    assert len(streams) == 5 and max(map(len, REFERENCES)) == 6
    theirs = sacrebleu.corpus_bleu([text.lower() for text in TRANSCRIPTS], streams)
    ours = make_protocol("validation").scores(TRANSCRIPTS, REFERENCES)
    assert set(ours) == {"bleu1", "bleu2", "bleu3", "bleu4"}
    assert ours["bleu4"].value() == theirs.score
    for score in ours.values():
        assert float(score.formula(score.items.sum(axis=0))) == pytest.approx(score.value(), abs=1e-9)
        low, high = score.interval(100, seed=0)
        assert low < score.value() < high


def test_the_three_differ_and_say_what_they_are() -> None:
    scores = {name: make_protocol(name).scores(TRANSCRIPTS, REFERENCES) for name in ("plain", "test", "validation")}
    assert len({round(found["bleu4"].value(), 1) for found in scores.values()}) == 3
    assert "sacrebleu" in make_protocol("validation").describe() and "ptb (" in make_protocol("test").describe()
    with pytest.raises(InputError, match="'coco' is unknown; known are plain, test, validation"):
        make_protocol("coco")


def test_duplicates_count_once_in_plain_and_twice_in_test() -> None:
    transcripts, references = ["a red dog", "a cat"], [["A red dog .", "a red dog"], ["two cats"]]
    assert [len(texts) for _, texts in make_protocol("plain").pairs(transcripts, references)] == [1, 1]
    assert [len(texts) for _, texts in make_protocol("test").pairs(transcripts, references)] == [2, 1]
    assert [len(texts) for _, texts in make_protocol("validation").pairs(transcripts, references)] == [1, 1]


@pytest.mark.parametrize("name", ["plain", "test", "validation"])
def test_an_item_without_a_reference_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="item 1 has no reference"):
        make_protocol(name).scores(["a", "b"], [["a"], [" "]])


def test_an_empty_set_has_no_scores() -> None:
    for name in ("plain", "test", "validation"):
        assert all(np.isfinite(score.value()) for score in make_protocol(name).scores([], []).values())
