"""The codebooks that a set of token shards carries, so that it can be trained on and listened to by itself.

`<shards>/tokenizers/units.safetensors` is the codebook that made the speech units, as the kmeans stage wrote it.
`<shards>/tokenizers/image.safetensors` holds the image tokenizer's codebook alone, `quantizer.embedding.weight`
float32 [K, D], with the fingerprint of the tokenizer in its metadata: all of a tokenizer that training needs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pipeline.errors import InputError
from pipeline.tensors import write_safetensors

FOLDER = "tokenizers"
UNITS_NAME, IMAGE_NAME = "units.safetensors", "image.safetensors"
BUNDLED = Path(__file__).resolve().parent.parent / "bundled" / "vit_vqgan" / "model.safetensors"
CODEBOOK_NAME = "quantizer.embedding.weight"
"""The name of the codebook in every ViT-VQGAN and taming-style tokenizer."""


def carry_image_codebook(weights: Path, shards_dir: Path) -> None:
    """Copy the codebook out of an image tokenizer's model.safetensors into a set of shards."""
    codes, fingerprint = read_image_codebook(weights)
    path = Path(shards_dir) / FOLDER / IMAGE_NAME
    write_safetensors(path, {CODEBOOK_NAME: codes}, {"fingerprint": fingerprint})


def read_image_codebook(path: Path) -> tuple[NDArray[np.float32], str]:
    """(codes float32 [K, D] as they were trained, the tokenizer's fingerprint, "" where it says none).

    path: `tokenizers/image.safetensors` of a set, or an image tokenizer's whole `model.safetensors`.
    Raises InputError when there is no codebook in it.
    """
    try:
        with safe_open(path, framework="np") as weights:
            fingerprint = (weights.metadata() or {}).get("fingerprint", "")
            codes = weights.get_tensor(CODEBOOK_NAME)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not an image tokenizer's safetensors with '{CODEBOOK_NAME}' ({error})") from error
    if codes.ndim != 2:
        raise InputError(f"{path}: '{CODEBOOK_NAME}' must be [K, D], not {codes.shape}")
    return codes.astype(np.float32), fingerprint


def find_image_codebook(
    shards_dir: Path, about: Mapping[str, Any], tokenizer: Path | None = None
) -> NDArray[np.float32]:
    """The codebook that made a set's image tokens, float32 [K, D] as trained.

    about: `tokenizers.image` of an index; tokenizer: folder of the image tokenizer. Without one the set's own
    codebook is taken, and for a set that carries none the bundled tokenizer's, if the tokens are of that.
    Raises InputError, naming both fingerprints, when the codebook at hand is another than the tokens'.
    """
    own = Path(shards_dir) / FOLDER / IMAGE_NAME
    path = tokenizer / "model.safetensors" if tokenizer is not None else own if own.is_file() else BUNDLED
    codes, fingerprint = read_image_codebook(path)
    if fingerprint not in ("", about["fingerprint"]):
        remedy = "give the tokenizer that made them with --vqgan"
        if path == BUNDLED:
            remedy = f"the set carries no {FOLDER}/{IMAGE_NAME} either; {remedy}"
        raise InputError(
            f"{path}: this is image tokenizer {fingerprint}, but the tokens in {shards_dir} were made by "
            f"{about['fingerprint']}; {remedy}"
        )
    if len(codes) != about["vocab"]:
        raise InputError(f"{path}: {len(codes)} codes, but the tokens in {shards_dir} are of {about['vocab']}")
    return codes


def refuse_misfits(shards_dir: Path, indexes: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse splits of different tokenizers, and codebooks in the set that are not the tokens' own.

    Raises InputError naming both fingerprints. indexes: split -> index, at least one.
    """
    (first, index), *others = indexes.items()
    for word, name in (("units", "codebook"), ("image", "image tokenizer")):
        for split, other in others:
            ours, theirs = ((i["tokenizers"].get(word) or {}).get("fingerprint") for i in (index, other))
            if ours != theirs:
                raise InputError(
                    f"{shards_dir}: split '{first}' is of {name} {ours}, split '{split}' of {theirs}; "
                    "these shards do not belong together"
                )
    for where, problem in carried_problems(shards_dir, index):
        raise InputError(f"{shards_dir}/{where}: {problem}; get the set anew")


def carried_problems(shards_dir: Path, index: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(file, what is wrong with it) for the codebooks that a set carries, held against an index of it."""
    from pipeline.speech.kmeans import Codebook

    problems: list[tuple[str, str]] = []
    for name, word in ((UNITS_NAME, "units"), (IMAGE_NAME, "image")):
        path, where = Path(shards_dir) / FOLDER / name, f"{FOLDER}/{name}"
        about = index["tokenizers"].get(word)
        if not path.is_file() or about is None:
            continue
        try:
            if word == "units":
                codebook = Codebook.load(path)
                size, fingerprint = len(codebook.centroids), codebook.fingerprint
            else:
                codes, fingerprint = read_image_codebook(path)
                size = len(codes)
        except InputError as error:
            problems.append((where, str(error).removeprefix(f"{path}: ")))
            continue
        if fingerprint != about.get("fingerprint"):
            problem = f"is codebook {fingerprint}, but the tokens are of codebook {about.get('fingerprint')}"
            problems.append((where, problem))
        elif size != about.get("vocab"):
            problems.append((where, f"has {size} entries, the vocabulary is of {about.get('vocab')}"))
    return problems
