"""vocoder: speech units -> waveform. Reads units and recordings, writes data/vocoder.

One voice is enough, and better: the units hold what was said and not who said it, so a vocoder of one
speaker turns anybody's units into that speaker's voice. Several can be had all the same, to choose from.
The folder carries the fingerprint of the codebook, and later stages refuse to use it with the units of
another. Docs: docs/vocoder.md.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages._cli import In, Out, Section, StageContext

if TYPE_CHECKING:
    from pipeline.speech.vocoder import Vocoder
    from pipeline.speech.vocoder_crops import Example
    from pipeline.speech.vocoder_training import TrainingSettings


class Params(Section):
    kind: Literal["mel", "hifigan"] = Field("mel", description="mel: log-mel + Griffin-Lim. hifigan: waveform.")
    source: str = Field("train", description="train, or the folder of an imported vocoder to take as it is.")
    speaker: str = Field("", description="Whose voice to learn; empty: the speaker with most training captions.")
    speakers: Literal["one", "all"] = Field(
        "one", description="all: every training speaker's voice, `speaker`'s unless another is asked for (hifigan)."
    )
    start: str = Field("", description="hifigan: begin with the weights of this vocoder's folder; empty: at random.")
    steps: int = Field(300, ge=1, description="Training steps.")
    batch_size: int = Field(16, ge=1, description="Crops in a step.")
    crop_frames: int = Field(64, ge=4, description="Length of a crop in unit frames (of 20 ms).")
    max_utterances: int = Field(2000, ge=1, description="Train on at most this many utterances, drawn by seed.")
    lr: float | None = Field(
        None, gt=0, description="Highest learning rate (AdamW); by itself 0.002, with discriminators 0.0002."
    )
    channels: int = Field(192, ge=8, description="Width of the network (hifigan: of its first layer).")
    discriminators: bool = Field(
        True, description="hifigan: train against HiFi-GAN's discriminators; else mel and STFT losses only."
    )
    adversarial_start: int = Field(0, ge=0, description="hifigan: the first step with discriminators.")
    discriminator_channels: int = Field(
        1024, ge=128, multiple_of=128, description="hifigan: width of the discriminators (the paper has 1024)."
    )
    mel_weight: float = Field(45.0, ge=0, description="hifigan: weight of the mel error, with discriminators.")
    feature_weight: float = Field(2.0, ge=0, description="hifigan: weight of feature matching.")
    lr_decay: float = Field(0.999, gt=0, le=1, description="hifigan: factor of lr an epoch, with discriminators.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="hifigan: arithmetic of the networks, with discriminators; losses stay fp32."
    )
    griffin_lim_iterations: int = Field(16, ge=0, description="Griffin-Lim iterations of the mel kind.")
    seed: int = Field(0, ge=0, description="Seed of weights, crops and the choice of utterances.")


def run(
    params: Params,
    context: StageContext,
    *,
    manifests: In = Path("manifests"),
    units: In = Path("data/units"),
    root: In = Path("data/demo"),
    out: Out = Path("data/vocoder"),
) -> None:
    """Train a vocoder on units and recordings (under --root) of one speaker or all, or take an imported one."""
    if context.dry_run:
        return
    import shutil

    import torch

    from pipeline.files import write_json
    from pipeline.speech.vocoder import Vocoder, load_vocoder, save_vocoder
    from pipeline.speech.vocoder_training import measure_vocoder, train_vocoder
    from stages._settings import resolve_device

    facts = _unit_facts(units / "units.json")
    device = resolve_device(context.settings.device)
    torch.set_num_threads(context.settings.num_threads)
    if params.source != "train":
        imported = load_vocoder(
            Path(params.source), units_fingerprint=facts["codebook_fingerprint"], num_units=facts["num_units"]
        )
        save_vocoder(out, Vocoder(imported.network, _described(imported.info, facts)))
        write_json(out / "metrics.json", {"num_train_utterances": 0})
        return
    settings = _training_settings(params)
    start = _starting_point(params, facts)
    speakers, train, held_out = _examples(params, context, manifests, units, root, facts)
    config = _config(params, facts, speakers) if start is None else _started(start, params, speakers)
    checkpoint = _checkpoint(params, context, train, settings)
    network = train_vocoder(
        train,
        config,
        settings,
        device=device,
        start=None if start is None else start.network.state_dict(),
        checkpoint=checkpoint,
        log=lambda losses: context.log(**losses),
    )
    save_vocoder(out, Vocoder(network, _info(params.kind, speakers[0], network, facts)))
    measured = measure_vocoder(network, held_out, device)
    write_json(out / "metrics.json", {**measured, "num_train_utterances": len(train)})
    if checkpoint is not None:
        shutil.rmtree(checkpoint, ignore_errors=True)


def _unit_facts(path: Path) -> dict[str, Any]:
    from pipeline.errors import InputError
    from pipeline.files import read_json

    facts = read_json(path)
    for key in ("codebook_fingerprint", "num_units", "sample_rate", "hop"):
        if key not in facts:
            raise InputError(f"{path}: key {key!r} is missing; run `im2speech units` again")
    return facts


def _training_settings(params: Params) -> "TrainingSettings":
    """How to train. InputError for parameters that the kind does not know."""
    from pipeline.errors import InputError
    from pipeline.speech.hifigan_training import AdversarialSettings
    from pipeline.speech.vocoder_training import TrainingSettings

    against = params.kind == "hifigan" and params.discriminators
    for key, value, needed, met in (
        ("speakers", params.speakers != "one", "kind: hifigan", params.kind == "hifigan"),
        ("start", bool(params.start), "kind: hifigan", params.kind == "hifigan"),
        ("precision", params.precision != "fp32", "kind: hifigan with discriminators", against),
    ):
        if value and not met:
            chosen = getattr(params, key)
            raise InputError(f"params.yaml, section 'vocoder': {key}: {chosen} needs {needed}; leave {key} out")
    adversarial = AdversarialSettings(
        start=params.adversarial_start,
        channels=params.discriminator_channels,
        mel_weight=params.mel_weight,
        feature_weight=params.feature_weight,
        rate_decay=params.lr_decay,
        precision=params.precision,
    )
    return TrainingSettings(
        steps=params.steps,
        batch_size=params.batch_size,
        crop_frames=params.crop_frames,
        lr=params.lr or (2e-4 if against else 2e-3),
        seed=params.seed,
        adversarial=adversarial if against else None,
    )


def _starting_point(params: Params, facts: dict[str, Any]) -> "Vocoder | None":
    """The vocoder that training begins with; None: nothing learnt yet."""
    from pipeline.errors import InputError
    from pipeline.speech.vocoder import load_vocoder

    if not params.start:
        return None
    folder = Path(params.start)
    start = load_vocoder(folder, units_fingerprint=facts["codebook_fingerprint"], num_units=facts["num_units"])
    if start.info.kind != params.kind:
        raise InputError(f"{folder}: a vocoder of kind {start.info.kind!r}; `start` needs one of kind {params.kind!r}")
    _described(start.info, facts)  # refuses another sample rate or hop
    return start


def _started(start: "Vocoder", params: Params, speakers: list[str]) -> Any:
    """The network of the starting point, which decides the sizes. InputError when its voices are not these."""
    from pipeline.errors import InputError

    wanted = tuple(speakers) if params.speakers == "all" else ()
    if start.speakers != wanted:
        has, asked = (", ".join(names[:5]) or "one without a name" for names in (start.speakers, wanted))
        raise InputError(f"{params.start}: its voices are {has}, training asks for {asked}; leave 'start' out")
    return start.network.config


def _checkpoint(
    params: Params, context: StageContext, train: "list[Example]", settings: "TrainingSettings"
) -> Path | None:
    """The folder from which an interrupted run of the same parameters, data and code goes on; None for a short run."""
    from pipeline import speech
    from pipeline.files import sha256_file
    from pipeline.speech.vocoder_crops import examples_fingerprint
    from pipeline.training_state import run_fingerprint

    if settings.steps <= settings.checkpoint_every:
        return None
    start = sha256_file(Path(params.start) / "model.safetensors") if params.start else ""
    named = {"params": params.model_dump(), "data": examples_fingerprint(train), "start": start}
    return context.settings.scratch_dir / f"vocoder-{run_fingerprint(named, [speech])}"


def _config(params: Params, facts: dict[str, Any], speakers: list[str]) -> Any:
    from pipeline.speech.hifigan import small_config
    from pipeline.speech.mel import MelConfig
    from pipeline.speech.mel_vocoder import MelVocoderConfig

    if params.kind == "hifigan":
        voices = speakers if params.speakers == "all" else []
        return small_config(facts["num_units"], params.channels, facts["hop"], facts["sample_rate"], voices)
    # A window of 32 ms: what a longer one smears before the first word makes "the" of "a".
    mel = MelConfig(facts["sample_rate"], n_fft=512, hop=facts["hop"] // 2)
    return MelVocoderConfig(
        num_units=facts["num_units"],
        channels=params.channels,
        griffin_lim_iterations=params.griffin_lim_iterations,
        mel=mel,
        hop=facts["hop"],
    )


def _info(kind: str, speaker: str, network: Any, facts: dict[str, Any]) -> Any:
    from pipeline.speech.vocoder import VocoderInfo

    return VocoderInfo(
        kind=kind,
        num_units=facts["num_units"],
        sample_rate=facts["sample_rate"],
        hop=facts["hop"],
        units_fingerprint=facts["codebook_fingerprint"],
        speaker=speaker,
        model=network.config.to_dict(),
    )


def _described(info: Any, facts: dict[str, Any]) -> Any:
    """An imported vocoder whose codebook nobody recorded is tied to the units that it is now used with."""
    from dataclasses import replace

    from pipeline.errors import InputError

    for name in ("sample_rate", "hop"):
        if getattr(info, name) != facts[name]:
            raise InputError(f"vocoder: its {name} is {getattr(info, name)}, but the units' is {facts[name]}")
    return replace(info, units_fingerprint=facts["codebook_fingerprint"])


def _examples(
    params: Params, context: StageContext, manifests: Path, units: Path, root: Path, facts: dict[str, Any]
) -> "tuple[list[str], list[Example], list[Example]]":
    """Speakers, training and held-out examples (from `val`, else a twentieth of `train`)."""
    from pipeline.errors import InputError
    from pipeline.speech.vocoder_data import choose_speakers, find_utterances, load_examples, sample

    train = find_utterances(manifests, units, "train")
    speakers = choose_speakers(train, params.speaker)
    if params.speakers == "one":
        speakers = speakers[:1]
    wanted = set(speakers)
    train = [utterance for utterance in train if utterance.speaker in wanted]
    held_out = []
    if (units / "val").is_dir():
        held_out = [u for u in find_utterances(manifests, units, "val") if u.speaker in wanted]
    train = sample(train, min(params.max_utterances, context.limit or params.max_utterances), params.seed)
    if not held_out:
        held_out, train = train[::20], [u for index, u in enumerate(train) if index % 20]
    if not train:
        raise InputError(f"vocoder: speaker {speakers[0]!r} has one utterance in train; at least two are needed")
    held_out = sample(held_out, 50, params.seed)
    load = {"root": root, "sample_rate": facts["sample_rate"], "hop": facts["hop"], "speakers": speakers}
    return speakers, load_examples(train, **load), load_examples(held_out, **load)
