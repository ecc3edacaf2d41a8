"""Unit HiFi-GANs as fairseq publishes them (`{"generator": ...}` and config.json) -> our vocoder folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoints.provenance import provenance
from pipeline.checkpoints.torch_files import Tensors, read_torch, tensors_in
from pipeline.checkpoints.weights import check_fit, read_weights, strip_prefix
from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.speech.hifigan import CodeHiFiGAN, HiFiGANConfig
from pipeline.speech.vocoder import Vocoder, VocoderInfo, save_vocoder


def import_vocoder(
    source: Path,
    config: Path,
    out: Path,
    *,
    units_fingerprint: str = "",
    num_units: int | None = None,
    speaker: str = "",
) -> Vocoder:
    """Write `config.json`, `model.safetensors` and `provenance.json` into `out`, give the vocoder.

    source: the generator's checkpoint, old or new weight-norm names. config: its config.json; keys that only
    training needs, or that nobody knows, are passed over. units_fingerprint: of the codebook whose units it
    speaks, if known. Raises InputError for parts that are not built here (f0, styles), missing or misshapen
    weights, and a number of units that is not the codebook's.
    """
    values = read_json(config)
    if not isinstance(values, dict):
        raise InputError(f"{config}: a mapping was expected")
    tensors = _generator(source)
    if "dict.weight" not in tensors:
        raise InputError(f"{source}: not a unit HiFi-GAN: it has no 'dict.weight' (units are its input)")
    # The weights know these better than a config that was written before training.
    values["num_embeddings"], values["embedding_dim"] = tensors["dict.weight"].shape
    if "spkr.weight" in tensors:
        values["num_speakers"] = len(tensors["spkr.weight"])
    if "model_in_dim" not in values and "conv_pre.weight_v" in tensors:
        values["model_in_dim"] = tensors["conv_pre.weight_v"].shape[1]
    try:
        settings = HiFiGANConfig.from_dict(values)
        network = CodeHiFiGAN(settings)
    except InputError as error:
        raise InputError(f"{config}: {error}") from error
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{config}: not a unit HiFi-GAN's config ({error})") from error
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    kept, left = check_fit(tensors, shapes, source)
    if num_units is not None and num_units != settings.num_embeddings:
        raise InputError(f"{source}: it speaks {settings.num_embeddings} units, the codebook has {num_units}")
    network.load_state_dict({name: torch.tensor(value) for name, value in kept.items()})
    info = VocoderInfo(
        kind="hifigan",
        num_units=settings.num_embeddings,
        sample_rate=settings.sampling_rate,
        hop=settings.hop,
        units_fingerprint=units_fingerprint,
        speaker=speaker,
        model=settings.to_dict(),
    )
    vocoder = Vocoder(network.eval(), info)
    save_vocoder(out, vocoder)
    notes = (f"left out: {', '.join(left[:20])}",) if left else ()
    provenance("fairseq CodeHiFiGAN", source, config, notes=notes).save(out)
    return vocoder


def _generator(source: Path) -> Tensors:
    """The generator's tensors under the names of the old weight norm."""
    if source.suffix == ".safetensors":
        tensors = read_weights(source)
    else:
        found: Any = read_torch(source)
        if isinstance(found, Mapping):
            for key in ("generator", "state_dict", "model"):
                if isinstance(found.get(key), Mapping):
                    found = found[key]
                    break
        tensors = tensors_in(found)
    tensors = strip_prefix(tensors, "generator.", "module.", "model.")
    names = {"original0": "weight_g", "original1": "weight_v"}
    return {
        re.sub(r"parametrizations\.weight\.(original[01])$", lambda found: names[found[1]], key): value
        for key, value in tensors.items()
    }
