"""vocoder: speech units -> waveform. Reads units and recordings of one speaker, writes data/vocoder.

One voice is enough, and better: the units hold what was said and not who said it, so a vocoder of one
speaker turns anybody's units into that speaker's voice. The folder carries the fingerprint of the
codebook, and later stages refuse to use it with the units of another.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages._cli import In, Out, Section, StageContext

if TYPE_CHECKING:
    from pipeline.speech.vocoder_training import Example


class Params(Section):
    kind: Literal["mel", "hifigan"] = Field("mel", description="mel: log-mel + Griffin-Lim. hifigan: waveform.")
    source: str = Field("train", description="train, or the folder of an imported vocoder to take as it is.")
    speaker: str = Field("", description="Whose voice to learn; empty: the speaker with most training captions.")
    steps: int = Field(300, ge=1, description="Training steps.")
    batch_size: int = Field(16, ge=1, description="Crops in a step.")
    crop_frames: int = Field(64, ge=4, description="Length of a crop in unit frames (of 20 ms).")
    max_utterances: int = Field(2000, ge=1, description="Train on at most this many utterances, drawn by seed.")
    lr: float = Field(2e-3, gt=0, description="Highest learning rate (AdamW, cosine).")
    channels: int = Field(192, ge=8, description="Width of the network (hifigan: of its first layer).")
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
    """Train a vocoder on one speaker's units and recordings (under --root), or take an imported one."""
    if context.dry_run:
        return
    import torch

    from pipeline.files import write_json
    from pipeline.speech.vocoder import Vocoder, load_vocoder, save_vocoder
    from pipeline.speech.vocoder_training import TrainingSettings, measure_vocoder, train_vocoder
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
    speaker, train, held_out = _examples(params, context, manifests, units, root, facts)
    settings = TrainingSettings(
        steps=params.steps,
        batch_size=params.batch_size,
        crop_frames=params.crop_frames,
        lr=params.lr,
        seed=params.seed,
    )
    network = train_vocoder(
        train, _config(params, facts), settings, device=device, log=lambda losses: context.log(**losses)
    )
    save_vocoder(out, Vocoder(network, _info(params.kind, speaker, network, facts)))
    measured = measure_vocoder(network, held_out, device)
    write_json(out / "metrics.json", {**measured, "num_train_utterances": len(train)})


def _unit_facts(path: Path) -> dict[str, Any]:
    from pipeline.errors import InputError
    from pipeline.files import read_json

    facts = read_json(path)
    for key in ("codebook_fingerprint", "num_units", "sample_rate", "hop"):
        if key not in facts:
            raise InputError(f"{path}: key {key!r} is missing; run `im2speech units` again")
    return facts


def _config(params: Params, facts: dict[str, Any]) -> Any:
    from pipeline.speech.hifigan import small_config
    from pipeline.speech.mel import MelConfig
    from pipeline.speech.mel_vocoder import MelVocoderConfig

    if params.kind == "hifigan":
        return small_config(facts["num_units"], params.channels, facts["hop"], facts["sample_rate"])
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
) -> "tuple[str, list[Example], list[Example]]":
    """Speaker, training and held-out examples (from `val`, else a twentieth of `train`)."""
    from pipeline.errors import InputError
    from pipeline.speech.vocoder_data import choose_speaker, find_utterances, load_examples, sample

    train = find_utterances(manifests, units, "train")
    speaker = choose_speaker(train, params.speaker)
    train = [utterance for utterance in train if utterance.speaker == speaker]
    held_out = []
    if (units / "val").is_dir():
        held_out = [u for u in find_utterances(manifests, units, "val") if u.speaker == speaker]
    train = sample(train, min(params.max_utterances, context.limit or params.max_utterances), params.seed)
    if not held_out:
        held_out, train = train[::20], [u for index, u in enumerate(train) if index % 20]
    if not train:
        raise InputError(f"vocoder: speaker {speaker!r} has one utterance in train; at least two are needed")
    held_out = sample(held_out, 50, params.seed)
    load = {"root": root, "sample_rate": facts["sample_rate"], "hop": facts["hop"]}
    return speaker, load_examples(train, **load), load_examples(held_out, **load)
