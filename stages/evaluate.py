"""evaluate: the ladder from people's speech to the captioner's. Reads rows, recordings, units, image tokens and the
trained parts; writes metrics.json, predictions.jsonl, audio/, report/index.html and plots/."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field

from stages._cli import In, Out, Section, StageContext

if TYPE_CHECKING:
    from pipeline.captioner.generation import GenerationSettings
    from pipeline.evaluation.ladder import Metrics, Utterance
    from pipeline.evaluation.speech_side import SpeechFacts
    from pipeline.image_to_speech import ImageToSpeech
    from pipeline.manifest import Row

NO_FILE = Path("none")
Given = Annotated[
    Path,
    typer.Option(
        help="Somebody else's predictions, scored alone: COCO results or other JSON, JSONL, CSV, or a folder of "
        "recordings or transcripts named by image (docs/evaluation.md)."
    ),
]


class Params(Section):
    splits: list[str] = Field([], description="Splits to score; none given: all whose names start with `test`.")
    max_items: int = Field(0, ge=0, description="Images of a split, the first so many; 0: all.")
    max_captions: int = Field(1, ge=0, description="Recordings of an image in the first two rungs; 0: all.")
    recogniser: Literal["pocketsphinx", "wav2vec2", "whisper", "ctc"] = Field(
        "pocketsphinx", description="Whose transcripts are scored."
    )
    recogniser_model: str = Field("", description="wav2vec2, whisper (or ctc): folder, or id of a cached model.")
    recogniser_batch_size: int = Field(1, ge=1, description="wav2vec2, whisper: utterances at a time.")
    recogniser_min_seconds: float = Field(
        1.0, ge=0, description="wav2vec2: shorter ones get silence; the paper: 1 in validation, 0 in its test."
    )
    recogniser_language: str = Field("en", description="whisper of several languages: which; empty: it decides.")
    recogniser_task: Literal["transcribe", "translate"] = Field(
        "transcribe", description="whisper of several languages: as it was said, or in English."
    )
    second_recogniser: Literal["ctc", "none"] = Field("ctc", description="The stricter one, without a vocabulary.")
    language_model: str = Field(
        "captions",
        description="pocketsphinx: captions (of training splits), corpus (of all), default, or an ARPA file.",
    )
    ngram_order: int = Field(3, ge=2, le=3, description="Order of the language model made of captions.")
    dither: float = Field(0.01, ge=0, lt=1, description="Noise for pocketsphinx; standard deviation, full scale is 1.")
    protocol: Literal["plain", "test", "validation"] = Field(
        "plain", description="How captions are scored; test, validation: the paper's (docs/evaluation.md)."
    )
    references: str = Field(
        "", description="Karpathy's or COCO's file of captions to score against, in the root; none: the manifest's."
    )
    missing_predictions: Literal["refuse", "leave_out", "silence"] = Field(
        "refuse", description="With --predictions: what becomes of images that have none."
    )
    attributes: Literal["auto", "demo", "digits", "none"] = Field(
        "auto", description="What is counted by meaning; auto: as the references are."
    )
    java_metrics: bool = Field(True, description="METEOR and SPICE, where a Java runtime (and their jars) are found.")
    bootstrap_samples: int = Field(1000, ge=0, description="Resamples for the 95 % intervals; 0: none.")
    num_report_items: int = Field(24, ge=1, description="Images of a split in the report.")
    seed: int = Field(
        0, ge=0, description="Decides noise, shuffles, resamples, drawn captions and the items of the report."
    )
    num_beams: int = Field(1, ge=1, description="Beams of the captioner's search; 1: greedy, as in the paper.")
    length_penalty: float = Field(
        1.0, description="Captions are compared by log-probability over length to this power; 0: as a whole."
    )
    temperature: float = Field(0.0, ge=0, description="Above 0 the captioner draws at random instead.")
    top_p: float = Field(1.0, gt=0, le=1, description="It draws among the likeliest that hold this share.")
    top_k: int = Field(0, ge=0, description="It draws among so many of the likeliest; 0: all.")
    num_samples: int = Field(1, ge=1, description="Captions drawn for an image; the likeliest is scored.")
    repetition_penalty: float = Field(1.0, gt=0, description="Above 1: what was said becomes less likely.")
    no_repeat_ngram_size: int = Field(0, ge=0, description="No run of so many ids twice in a caption; 0: any.")


CHOICE = (
    *("num_beams", "length_penalty", "temperature", "top_p", "top_k", "num_samples"),
    *("repetition_penalty", "no_repeat_ngram_size", "seed"),
)
"""Parameters that say how a caption is chosen."""


def run(
    params: Params,
    context: StageContext,
    *,
    manifests: In = Path("manifests"),
    root: In = Path("data/demo"),
    units: In = Path("data/units"),
    images: In = Path("data/images"),
    vqgan: In = Path("data/vqgan"),
    vocoder: In = Path("data/vocoder"),
    model: In = Path("data/train/model"),
    predictions: Given = NO_FILE,
    out: Out = Path("data/evaluate"),
) -> None:
    """Score recordings, resynthesised units, predictions and chance; write numbers, sound and a report.

    A rung whose parts are not there (no vocoder, no captioner, no image tokens) is left out, and said. With
    --predictions those are the only rung: transcripts or recordings of another system, and chance.
    """
    from pipeline.errors import InputError
    from pipeline.evaluation import ladder, outputs, speech_side
    from pipeline.evaluation.metrics import JavaScorers
    from pipeline.evaluation.recogniser import RecogniserSettings, refuse_absent
    from pipeline.files import read_json
    from pipeline.manifest import read_split, split_names

    _choice(params)  # refuses what cannot be before anything is loaded
    known = split_names(manifests)
    splits = params.splits or [name for name in known if name.startswith("test")]
    for name in splits:
        if name not in known:
            raise InputError(f"evaluate.splits: {manifests} has no split {name!r}; it has {', '.join(known)}")
    if not splits:
        raise InputError(f"{manifests}: no split starts with `test` (it has {', '.join(known)}); give --splits")
    number = min([count for count in (params.max_items, context.limit) if count], default=None)
    rows = {name: read_split(manifests, name)[:number] for name in splits}
    if context.dry_run:
        print("evaluate: " + ", ".join(f"{len(found)} images of {name}" for name, found in rows.items()))
        return
    wanted = params.java_metrics and params.protocol != "validation"
    java = JavaScorers() if wanted else None  # early: it gets ready while we listen
    notes: list[str] = []
    further: dict[str, list[Utterance]] = {}
    if predictions != NO_FILE:
        spoken, further = _given(params, manifests, rows, predictions, out, notes)
    else:
        refuse_absent(RecogniserSettings(params.recogniser, params.recogniser_model))
        parts = _load_parts(context, vqgan, vocoder, model, units, images, notes)
        (out / "rejects.jsonl").unlink(missing_ok=True)  # of somebody else's predictions
        spoken = {name: _rungs(params, found, name, root, units, images, parts) for name, found in rows.items()}
        _note_gaps(rows, spoken, notes)
    if params.references:
        _use_references(params, rows, spoken, root, notes)
    context.log(event="spoken", utterances=sum(len(u) for rungs in spoken.values() for u in rungs.values()))
    heard_by = _listen(params, context, manifests, spoken, further, notes)
    protocol = _protocol(params, java, spoken, heard_by, notes)
    settings = ladder.ScoreSettings(params.attributes, params.bootstrap_samples, params.seed, protocol)
    size = read_json(units / "units.json").get("num_units", 0) if (units / "units.json").exists() else 0
    metrics = {}
    for name, rungs in spoken.items():
        facts = speech_side.SpeechFacts(ladder.recorded_units(units / name), size, further.get(name, []))
        metrics[name] = _score(rungs, heard_by, settings, java, facts)
    results = outputs.Results(spoken, metrics, heard_by, notes)
    outputs.write_outputs(out, results, root=root, num_report_items=params.num_report_items, seed=params.seed)
    for line in outputs.summary_lines(metrics) + notes:
        print(f"evaluate: {line}")


def _load_parts(
    context: StageContext, vqgan: Path, vocoder: Path, model: Path, units: Path, images: Path, notes: list[str]
) -> dict[str, Any]:
    """The captioner and the vocoder, as far as they are there, and a note on what is not."""
    import torch

    from pipeline.evaluation.ladder import Speaker
    from pipeline.files import read_json
    from pipeline.image_to_speech import ImageToSpeech
    from pipeline.speech.vocoder import load_vocoder
    from stages._settings import bound_caches, resolve_device

    bound_caches()

    torch.set_num_threads(context.settings.num_threads)
    device = resolve_device(context.settings.device)
    parts: dict[str, Any] = {}
    if (vocoder / "config.json").exists():
        facts = read_json(units / "units.json") if (units / "units.json").exists() else {}
        load_vocoder(vocoder, units_fingerprint=facts.get("codebook_fingerprint"))  # refuses what does not fit
        parts["speaker"] = Speaker(vocoder.absolute(), device, context.settings.num_workers)
    else:
        notes.append(f"No resynthesis and no prediction: there is no vocoder in {vocoder}.")
    if "speaker" in parts and (model / "config.json").exists():
        captioner = ImageToSpeech.from_pretrained(model, vqgan_dir=vqgan, vocoder_dir=vocoder, device=device)
        _refuse_other_tokens(model, captioner, units, images)
        parts["captioner"] = captioner
    elif "speaker" in parts:
        notes.append(f"No prediction: there is no captioner in {model}.")
    return parts


def _refuse_other_tokens(model: Path, captioner: "ImageToSpeech", units: Path, images: Path) -> None:
    """InputError, naming both fingerprints, when the tokens to be scored are not those that the captioner learnt."""
    from pipeline.errors import InputError
    from pipeline.files import read_json

    known = [(units / "units.json", "codebook_fingerprint", "codebook", captioner.vocabulary.codebook_fingerprint)]
    if captioner.model.config.input == "tokens":
        tokenizer = captioner.model.config.image_tokenizer
        known.append((images / "tokenizer.json", "tokenizer_fingerprint", "image tokenizer", tokenizer))
    for path, field, word, learnt in known:
        found = read_json(path).get(field) if path.exists() else None
        if found and learnt and found != learnt:
            raise InputError(
                f"{path}: tokens of {word} {found}, but the captioner in {model} was trained on {word} {learnt}; "
                "run the stages in between again"
            )


def _choice(params: Params) -> "GenerationSettings":
    """How a caption is chosen. InputError for parameters that do not go together."""
    from pipeline.captioner.generation import GenerationSettings

    return GenerationSettings(**{name: getattr(params, name) for name in CHOICE})


def _rungs(
    params: Params, rows: "list[Row]", split: str, root: Path, units: Path, images: Path, parts: dict[str, Any]
) -> "dict[str, list[Utterance]]":
    from pipeline.evaluation import ladder

    rungs = {"ground_truth": ladder.recordings(rows, root, params.max_captions)}
    if "speaker" in parts:
        rungs["resynthesis"] = ladder.resynthesised(rows, units / split, parts["speaker"], params.max_captions)
    if "captioner" in parts and any(row.image for row in rows):
        captioner, speaker = parts["captioner"], parts["speaker"]
        rungs["prediction"] = ladder.predicted(rows, captioner, speaker, images / split, root, _choice(params))
    return rungs


def _note_gaps(rows: "dict[str, list[Row]]", spoken: "dict[str, dict[str, list[Utterance]]]", notes: list[str]) -> None:
    """Say what a rung lacks, since leaving out what is hard flatters."""
    for split, rungs in spoken.items():
        recorded, pictures = len(rungs["ground_truth"]), sum(row.image is not None for row in rows[split])
        if lacking := recorded - len(rungs.get("resynthesis", rungs["ground_truth"])):
            notes.append(f"{split}: {lacking} of {recorded} recordings have no units, and are not spoken again.")
        if "prediction" in rungs and (lacking := pictures - len(rungs["prediction"])):
            notes.append(f"{split}: {lacking} of {pictures} images have no tokens, and nothing is said of them.")


def _given(
    params: Params, manifests: Path, rows: "dict[str, list[Row]]", predictions: Path, out: Path, notes: list[str]
) -> "tuple[dict[str, dict[str, list[Utterance]]], dict[str, list[Utterance]]]":
    """Another system's predictions as the only rung, and further samples of them, by split."""
    from pipeline.evaluation.given import read_given, utterances
    from pipeline.manifest import read_split, split_names, write_rejects

    known = [row for name in split_names(manifests) for row in read_split(manifests, name)]
    spoken, further, rejects = {}, {}, []
    for split, wanted in rows.items():
        given = read_given(predictions, wanted, known)
        first, further[split] = utterances(given, wanted, params.missing_predictions, predictions)
        spoken[split] = {"prediction": first}
        rejects += given.rejects
        said = sum(row.key in given.said for row in wanted)
        notes.append(f"{split}: {predictions.name} speaks of {said} of {len(wanted)} images.")
        if further[split]:
            notes.append(f"{split}: {len(further[split])} further samples count for self-BLEU alone.")
    write_rejects(out / "rejects.jsonl", dict.fromkeys(rejects))
    if rejects:
        notes.append(f"{len(dict.fromkeys(rejects))} records were left out: rejects.jsonl.")
    return spoken, further


def _use_references(
    params: Params,
    rows: "dict[str, list[Row]]",
    spoken: "dict[str, dict[str, list[Utterance]]]",
    root: Path,
    notes: list[str],
) -> None:
    from pipeline.evaluation.references import references_of

    inside = root / params.references
    path = inside if inside.exists() else Path(params.references)
    for split, rungs in spoken.items():
        captions = references_of(rows[split], path)
        for utterance in (utterance for utterances in rungs.values() for utterance in utterances):
            utterance.published = captions[utterance.row.key]
    notes.append(f"References: the captions of {path.name}.")


def _protocol(
    params: Params, java: Any, spoken: "dict[str, dict[str, list[Utterance]]]", names: list[str], notes: list[str]
) -> Any:
    """The protocol, with all texts tokenised, and notes on it and on what it leaves out."""
    from pipeline.evaluation.protocols import make_protocol

    protocol = make_protocol(params.protocol)
    notes.insert(0, protocol.describe())
    if params.protocol == "validation":
        notes.append("BLEU alone: the paper's validation counts nothing else.")
    else:
        missing = java.missing if java else dict.fromkeys(("meteor", "spice"), "java_metrics is off")
        notes += [f"{name.upper()} was not computed: {why}." for name, why in missing.items()]
    utterances = [u for rungs in spoken.values() for found in rungs.values() for u in found]
    protocol.prepare(text for u in utterances for text in (u.raw[names[0]], *u.raw_references))
    return protocol


def _listen(
    params: Params,
    context: StageContext,
    manifests: Path,
    spoken: "dict[str, dict[str, list[Utterance]]]",
    further: "dict[str, list[Utterance]]",
    notes: list[str],
) -> list[str]:
    """Every recogniser hears every utterance. Returns their names, the one that captions are scored by first."""
    from pipeline.evaluation import ladder
    from pipeline.evaluation.given import GIVEN

    groups = [utterances for rungs in spoken.values() for utterances in rungs.values()] + list(further.values())
    if any(GIVEN in utterance.transcripts for utterances in groups for utterance in utterances):
        notes.append("The transcripts are as given; no recogniser of ours listened.")
        return [GIVEN]
    recognisers = _recognisers(params, context, manifests, list(spoken), notes)
    for name, recogniser in recognisers.items():
        ladder.listen(groups, name, recogniser)
        context.log(event="heard", recogniser=name)
        if cut := getattr(recogniser, "num_cut", 0):
            notes.append(f"{cut} utterances are longer than 30 seconds; {name} heard their start alone.")
    model = f" ({Path(params.recogniser_model).name})" if params.recogniser_model else ""
    others = f"; beside it: {', '.join(list(recognisers)[1:])}" if len(recognisers) > 1 else ""
    notes.insert(0, f"Recogniser whose transcripts are scored: {params.recogniser}{model}{others}.")
    return list(recognisers)


def _recognisers(
    params: Params, context: StageContext, manifests: Path, splits: list[str], notes: list[str]
) -> dict[str, Any]:
    from pipeline.evaluation.recogniser import RecogniserSettings, make_recogniser
    from pipeline.manifest import read_split, split_names
    from stages._settings import resolve_device

    texts: list[str] = []
    language_model = params.language_model
    if params.recogniser == "pocketsphinx" and language_model in ("captions", "corpus"):
        training = [name for name in split_names(manifests) if name.startswith("train") and name not in splits]
        sources = training if language_model == "captions" else split_names(manifests)
        texts = [caption.text for name in sources for row in read_split(manifests, name) for caption in row.captions]
        whose = "the training captions" if language_model == "captions" else "all captions, those scored here included"
        notes.append(f"The recogniser's vocabulary and language model are made of {whose}, which flatters it.")
        language_model = "captions"
    settings = RecogniserSettings(
        *(params.recogniser, params.recogniser_model, language_model, params.ngram_order, params.dither, params.seed),
        batch_size=params.recogniser_batch_size,
        min_seconds=params.recogniser_min_seconds,
        language=params.recogniser_language,
        task=params.recogniser_task,
    )
    device = resolve_device(context.settings.device)
    first = make_recogniser(settings, texts, context.settings.num_workers, device)
    if missing := getattr(first, "missing_words", []):
        shown = ", ".join(missing[:12]) + (" ..." if len(missing) > 12 else "")
        notes.append(f"{len(missing)} words of the captions are not in the recogniser's dictionary: {shown}.")
    recognisers: dict[str, Any] = {params.recogniser: first}
    if params.second_recogniser != "none" and params.second_recogniser != params.recogniser:
        recognisers["ctc"] = make_recogniser(RecogniserSettings("ctc"))
        notes.append(
            "The strict ear is a small network that spells what it hears, without a vocabulary; it has learnt from "
            "synthetic speech only, so of people it understands next to nothing."
        )
    return recognisers


def _score(
    rungs: "dict[str, list[Utterance]]", names: list[str], settings: Any, java: Any, facts: "SpeechFacts"
) -> "dict[str, Metrics]":
    from pipeline.evaluation import ladder, speech_side

    scores = {name: ladder.score(utterances, names, settings, java) for name, utterances in rungs.items() if utterances}
    if chance := ladder.score_chance(rungs.get("prediction", []), names, settings, java):
        scores["chance"] = chance
    for rung, measured in speech_side.measure(rungs, names[0], facts, settings).items():
        scores.setdefault(rung, {}).update(measured)
    return scores
