"""A trained vocoder on disk and in use: speech units to waveforms, whichever kind it is.

A vocoder folder holds `config.json` and `model.safetensors`. Both carry the facts that decide whether
the vocoder fits a set of units: how many units there are and the fingerprint of the codebook that
made them. Units of another codebook are refused, because they would give fluent nonsense.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import InputError
from pipeline.files import read_json, write_json
from pipeline.speech.hifigan import CodeHiFiGAN, HiFiGANConfig
from pipeline.speech.mel import log_mel_to_waveform
from pipeline.speech.mel_vocoder import MelVocoder, MelVocoderConfig
from pipeline.tensors import write_safetensors

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_FACTS = ("kind", "num_units", "sample_rate", "hop", "units_fingerprint", "speaker")


def build_network(kind: str, model: dict[str, Any]) -> MelVocoder | CodeHiFiGAN:
    """An untrained network from the `model` section of a vocoder's config.json."""
    if kind == "mel":
        return MelVocoder(MelVocoderConfig.from_dict(model))
    if kind == "hifigan":
        return CodeHiFiGAN(HiFiGANConfig.from_dict(model))
    raise InputError(f"vocoder: kind {kind!r} is unknown; known are 'mel' and 'hifigan'")


def save_vocoder(folder: Path, vocoder: "Vocoder") -> None:
    """Write config.json and model.safetensors; equal vocoders give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {name: str(getattr(vocoder.info, name)) for name in _FACTS}
    weights = {name: value.detach().cpu().numpy() for name, value in vocoder.network.state_dict().items()}
    write_safetensors(folder / "model.safetensors", weights, facts)
    write_json(folder / "config.json", asdict(vocoder.info))


def load_vocoder(
    folder: Path, device: str = "cpu", *, units_fingerprint: str | None = None, num_units: int | None = None
) -> "Vocoder":
    """Read a vocoder folder of either kind, ready to synthesise on `device`.

    InputError when files are missing, malformed or from two vocoders, and when `units_fingerprint` or
    `num_units` of the units at hand are given and are not those that the vocoder was trained on.
    """
    info = _read_info(folder / "config.json")
    try:
        network = build_network(info.kind, info.model)
    except (TypeError, KeyError) as error:
        raise InputError(f"{folder / 'config.json'}: key 'model' does not fit kind {info.kind!r} ({error})") from error
    network.load_state_dict(_read_weights(folder / "model.safetensors", info, network.state_dict()))
    vocoder = Vocoder(network.to(device).eval(), info)
    vocoder.check_units(units_fingerprint, num_units, where=str(folder))
    return vocoder


def _read_info(path: Path) -> "VocoderInfo":
    values = read_json(path)
    try:
        return VocoderInfo(**values)
    except TypeError as error:
        raise InputError(f"{path}: not a vocoder's config.json ({error}); make one with `im2speech vocoder`") from error


def _read_weights(path: Path, info: "VocoderInfo", expected: dict[str, Tensor]) -> dict[str, Tensor]:
    if not path.exists():
        raise InputError(f"{path}: no such file; run `im2speech vocoder`")
    try:
        with safe_open(path, framework="pt") as stored:
            facts = stored.metadata() or {}
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path}: not readable as safetensors ({error})") from error
    for name in _FACTS:
        if facts.get(name) != str(getattr(info, name)):
            raise InputError(
                f"{path}: metadata {name!r} is {facts.get(name)!r} but config.json says "
                f"{getattr(info, name)!r}; the two files come from different vocoders"
            )
    ours, theirs = ({name: tuple(value.shape) for name, value in group.items()} for group in (expected, weights))
    if ours != theirs:
        missing, extra = sorted(ours.items() - theirs.items()), sorted(theirs.items() - ours.items())
        raise InputError(f"{path}: weights do not fit config.json (missing {missing[:3]}, unexpected {extra[:3]})")
    return weights


@dataclass(frozen=True)
class VocoderInfo:
    """config.json. `hop` in samples a unit frame; `speaker` is whose voice it learned, for people to read.

    A vocoder of several voices lists them in `model`, key `speakers`; `speaker` is then the first of them.

    `units_fingerprint` names the codebook; empty when it is not known (an imported vocoder whose units
    nobody recorded). `model` holds the network's own configuration.
    """

    kind: str
    num_units: int
    sample_rate: int
    hop: int
    units_fingerprint: str
    speaker: str
    model: dict[str, Any]


class Vocoder:
    """Speech units to waveforms. Build one with `load_vocoder`."""

    def __init__(self, network: MelVocoder | CodeHiFiGAN, info: VocoderInfo) -> None:
        self.network = network
        self.info = info

    @property
    def sample_rate(self) -> int:
        """Samples a second of what `synthesize` gives."""
        return self.info.sample_rate

    @property
    def units_fingerprint(self) -> str:
        """Fingerprint of the codebook whose units this vocoder speaks; empty when unknown."""
        return self.info.units_fingerprint

    @property
    def num_units(self) -> int:
        return self.info.num_units

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the voices to choose from; none when there is one voice, or nobody recorded them."""
        return tuple(getattr(self.network.config, "speakers", ()))

    def check_units(self, fingerprint: str | None, num_units: int | None = None, *, where: str = "vocoder") -> None:
        """InputError when units of codebook `fingerprint`, `num_units` of them, are not what was learned."""
        if fingerprint and self.units_fingerprint and fingerprint != self.units_fingerprint:
            raise InputError(
                f"{where}: this vocoder speaks the units of codebook {self.units_fingerprint}, but these "
                f"units come from codebook {fingerprint}; train a vocoder on them (`im2speech vocoder`)"
            )
        if num_units is not None and num_units != self.num_units:
            raise InputError(f"{where}: this vocoder knows {self.num_units} units, but the codebook has {num_units}")

    def synthesize(
        self,
        units: "Sequence[ArrayLike]",
        durations: "Sequence[ArrayLike] | None" = None,
        *,
        speaker: int | str | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> "list[NDArray[np.float32]]":
        """Speak unit sequences.

        `units`: integer arrays `[n]`, deduplicated; `durations`: integer arrays `[n]` in frames, or None
        for predicted ones. Gives a float32 waveform in [-1, 1] each, `hop` samples a frame; an empty
        sequence gives an empty waveform. `speaker`, a name or a number, is for unit HiFi-GANs with
        several, of which the first speaks when none is asked for; `seed` is of the
        starting phase. The default batch is one sequence on a CPU, where more gain nothing and rounding
        would then depend on the neighbours. `progress` is called with the number just done.
        """
        sequences = [self._checked(index, sequence) for index, sequence in enumerate(units)]
        given = None if durations is None else self._checked_durations(sequences, durations)
        chosen = self._speaker_number(speaker)
        waveforms: list[NDArray[np.float32]] = [np.zeros(0, np.float32) for _ in sequences]
        # Like lengths side by side: less padding. The results are put back in the order asked for.
        order = sorted((i for i, sequence in enumerate(sequences) if len(sequence)), key=lambda i: len(sequences[i]))
        device = next(self.network.parameters()).device
        step = batch_size or (1 if device.type == "cpu" else 32)
        for start in range(0, len(order), step):
            batch = order[start : start + step]
            spoken = self._synthesize_batch(
                [sequences[i] for i in batch],
                None if given is None else [given[i] for i in batch],
                chosen,
                seed,
            )
            for index, waveform in zip(batch, spoken, strict=True):
                waveforms[index] = np.clip(waveform, -1.0, 1.0)
            if progress is not None:
                progress(len(batch))
        return waveforms

    def _speaker_number(self, speaker: int | str | None) -> int | None:
        embedding = getattr(self.network, "spkr", None)
        if speaker is None:
            return None
        if embedding is None:
            raise InputError("vocoder: it has one voice, so no speaker can be chosen")
        if isinstance(speaker, str):
            if speaker not in self.speakers:
                known = ", ".join(self.speakers[:10]) or f"numbers 0 to {embedding.num_embeddings - 1}"
                raise InputError(f"vocoder: no speaker {speaker!r}; it knows {known}")
            return self.speakers.index(speaker)
        if not 0 <= speaker < embedding.num_embeddings:
            raise InputError(f"vocoder: no speaker {speaker}; it knows 0 to {embedding.num_embeddings - 1}")
        return speaker

    def _synthesize_batch(
        self, units: list[Tensor], durations: list[Tensor] | None, speaker: int | None, seed: int
    ) -> "list[NDArray[np.float32]]":
        device = next(self.network.parameters()).device
        if isinstance(self.network, MelVocoder):
            config = self.network.config
            return [
                log_mel_to_waveform(
                    mel.cpu().numpy(), config.mel, num_iterations=config.griffin_lim_iterations, seed=seed
                )
                for mel in self.network.log_mels(units, durations)
            ]
        waveforms = []
        for index, sequence in enumerate(units):
            given = None if durations is None else durations[index].to(device)
            waveforms.append(self.network.synthesize(sequence.to(device), given, speaker).cpu().numpy())
        return waveforms

    def _checked(self, index: int, sequence: "ArrayLike") -> Tensor:
        array = np.asarray(sequence)
        if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
            raise InputError(f"vocoder: sequence {index} must be a one-dimensional array of whole numbers")
        if array.size and (int(array.max()) >= self.num_units or int(array.min()) < 0):
            wrong = int(array.max()) if int(array.max()) >= self.num_units else int(array.min())
            raise InputError(
                f"vocoder: sequence {index} holds unit {wrong}, but this vocoder knows units 0 to "
                f"{self.num_units - 1} (codebook {self.units_fingerprint or 'unknown'})"
            )
        return torch.from_numpy(array.astype(np.int64))

    @staticmethod
    def _checked_durations(units: list[Tensor], durations: "Sequence[ArrayLike]") -> list[Tensor]:
        if len(durations) != len(units):
            raise InputError(f"vocoder: {len(units)} unit sequences but {len(durations)} of durations")
        checked = []
        for index, (sequence, values) in enumerate(zip(units, durations, strict=True)):
            array = np.asarray(values)
            if array.shape != (len(sequence),) or (array.size and int(array.min()) < 1):
                raise InputError(f"vocoder: durations of sequence {index} must be one a unit, each at least 1 frame")
            checked.append(torch.from_numpy(array.astype(np.int64)))
        return checked
