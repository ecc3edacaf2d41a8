"""The units stage: every utterance becomes units or a reject, whoever does the work and whatever kills it."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.files import read_json
from pipeline.manifest import read_rejects, read_rows
from pipeline.media import read_audio
from pipeline.speech.hubert import SpeechEncoder
from pipeline.speech.kmeans import Codebook
from pipeline.tokens.parts import read_units_part, restore
from stages import units
from stages._cli import StageContext
from stages._settings import Settings
from tests.stages.speech_corpus import write_corpus, write_models


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    write_models(tmp_path)
    return tmp_path


def run(folder: Path, name: str, workers: int = 1, executor: str = "loky", **params) -> Path:
    settings = Settings(workers, 1, "cpu", executor, folder / f"scratch-{name}", folder / "logs")
    units.run(
        units.Params(encoder=str(folder / "encoder"), **{"max_reject_fraction": 0.2, **params}),
        StageContext("units", settings),
        manifests=folder / "manifests",
        root=folder / "corpus",
        codebook=folder / "codebook.safetensors",
        out=folder / name,
    )
    return folder / name


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_units_are_those_of_each_utterance_alone(corpus):
    out = run(corpus, "units")
    encoder, codebook = SpeechEncoder(corpus / "encoder", 2), Codebook.load(corpus / "codebook.safetensors")
    found = 0
    for path in sorted(out.rglob("*.npz")):
        part = read_units_part(path)
        rows = read_rows(corpus / "manifests" / path.relative_to(out).with_suffix(".jsonl"))
        assert [str(i) for i in part.ids] == [caption.id for row in rows for caption in row.captions]
        for number, row in enumerate(rows):
            waveform = read_audio(corpus / "corpus" / row.captions[0].audio)
            alone = codebook.assign(encoder.encode([waveform])[0].numpy())
            assert np.array_equal(restore(*part.utterance(number)), alone)
            found += 1
    assert found == read_json(out / "summary.json")["counts"]["utterances"] == 12
    assert "units_variant" not in read_json(out / "units.json")


def test_rejects_in_order_and_bytes_for_any_number_of_workers(corpus):
    (corpus / "corpus" / "2.wav").write_bytes(b"RIFF")
    (corpus / "corpus" / "5.wav").unlink()
    one, two = run(corpus, "one"), run(corpus, "two", workers=2)
    assert contents(one) == contents(two)
    rejects = read_rejects(one / "rejects.jsonl")
    assert [(r.key, r.id) for r in rejects] == [("k2", "c2"), ("k5", "c5")]
    assert all(r.reason.startswith("unreadable audio") and str(corpus) not in r.reason for r in rejects)


def test_what_is_not_the_default_stands_with_the_units(corpus):
    facts = read_json(run(corpus, "units", chunking="fairseq", precision="bf16") / "units.json")
    assert facts["units_variant"] == {"chunking": "fairseq", "precision": "bf16"}


def test_a_replaced_codebook_is_noticed_by_workers_that_live_on(corpus):
    first = contents(run(corpus, "first", workers=2))
    write_models(corpus, num_units=5)
    second = run(corpus, "second", workers=2)
    assert contents(second) != first and read_json(second / "units.json")["num_units"] == 5
    assert max(int(read_units_part(p).units.max()) for p in second.rglob("*.npz")) < 5
