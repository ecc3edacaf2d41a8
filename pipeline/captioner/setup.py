"""From shards and a starting point to a captioner ready to train, and to the examples it trains on."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline.captioner.augmentation import AugmentationSettings, TokenAugmentation
from pipeline.captioner.batches import Stream
from pipeline.captioner.data import Examples
from pipeline.captioner.model import MAX_POSITIONS, Captioner, copy_matching, load_captioner, make_config
from pipeline.captioner.vision_pretraining import NUM_QUERIES
from pipeline.captioner.vocabulary import Merge, UnitVocabulary, learn_merges
from pipeline.errors import InputError
from pipeline.tokens.carried import find_image_codebook
from pipeline.tokens.loader import Example, TokenSource
from pipeline.tokens.read import read_samples
from pipeline.tokens.sample import Sample

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"
ToPixels = Callable[[Image.Image, int, Any], torch.Tensor]
"""(picture, side, `squash` or `crop`) -> float32 [3, side, side] in [0, 1]: `pipeline.vision.transforms`, which this
package does not know."""

_WORDS_ONLY = ("git.embeddings.word_embeddings.", "output.")
_DECODER = ("git.encoder.", "git.embeddings.")


def build_captioner(
    params: Mapping[str, Any], shards_dir: Path, index: Mapping[str, Any], vqgan_dir: Path | None = None
) -> tuple[Captioner, UnitVocabulary]:
    """A captioner for these shards with the weights that `params["init"]` names, and its unit vocabulary.

    vqgan_dir: folder of the image tokenizer; None takes the codebook that the shards carry. Raises InputError when
    it, or the image tokenizer that init was trained on, is not the shards' own, and when init has too few positions
    for `max_length`.
    """
    torch.manual_seed(params["seed"])
    is_tokens = params["input"] == "tokens"
    merges: tuple[Merge, ...] = ()
    if params["num_pieces"]:
        spoken = (c.units.tolist() for sample in read_samples(shards_dir, "train") for c in sample.captions)
        merges = learn_merges(spoken, params["num_pieces"], params["max_piece_units"])
    codebook = index["tokenizers"]["units"]["fingerprint"]
    vocabulary = UnitVocabulary(index["vocab"]["units"], codebook, merges=merges)
    start = None
    if (folder := starting_folder(params)) is not None:
        start = load_captioner(folder)
        if start.config.input != params["input"]:
            raise InputError(
                f"train.init: {params['init']} takes {start.config.input}, train.input is {params['input']}"
            )
    tokenizer = index["tokenizers"]["image"]
    if is_tokens and tokenizer is None:
        raise InputError(f"{shards_dir}: these shards hold no image tokens; train.input tokens needs them")
    if is_tokens and start is not None and start.config.image_tokenizer != tokenizer["fingerprint"]:
        raise InputError(
            f"train.init: {params['init']} was trained on image tokenizer {start.config.image_tokenizer}, but "
            f"{shards_dir} was made by {tokenizer['fingerprint']}. Use init none, or the tokenizer it was trained on."
        )
    if (start is not None or not is_tokens) and (params["stem"] != "convolutions" or params["crop_tokens"]):
        raise InputError(
            "train.stem, train.crop_tokens: they shape a captioner of image tokens that starts from nothing "
            "(train.input tokens, train.init none)"
        )
    codes = _codebook(shards_dir, tokenizer, vqgan_dir) if is_tokens else None
    model = Captioner(_config(params, index, start, vocabulary, codes))
    if codes is not None:
        model.git.image_encoder.vision_model.embeddings.codebook.copy_(codes)
    if start is not None:
        copy_matching(model, start, _WORDS_ONLY if params["init_decoder"] else (*_WORDS_ONLY, *_DECODER))
    if params["freeze_vision"]:
        model.freeze_vision(params["freeze_projection"])
    return model, vocabulary


def starting_folder(params: Mapping[str, Any]) -> Path | None:
    """The folder of the captioner that `params["init"]` names; None: it starts from nothing."""
    if params["init"] == "none":
        return None
    return BUNDLED / f"git_{params['input']}" if params["init"] == "bundled" else Path(params["init"])


def _config(
    params: Mapping[str, Any],
    index: Mapping[str, Any],
    start: Captioner | None,
    vocabulary: UnitVocabulary,
    codes: torch.Tensor | None,
) -> Any:
    longest = params["max_length"] - 1  # what goes in lacks EOS, what comes out lacks BOS
    if start is not None:
        config = start.config.__class__.from_dict(start.config.to_dict())
        if longest > config.max_position_embeddings:
            raise InputError(
                f"train.max_length: {params['init']} has {config.max_position_embeddings} positions, so at most "
                f"{config.max_position_embeddings + 1}, not {params['max_length']}; longer captions are then left out"
            )
        config.vocab_size = vocabulary.size
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = params["dropout"]
        config.pad_token_id, config.bos_token_id, config.eos_token_id = (
            vocabulary.pad,
            vocabulary.bos,
            vocabulary.eos,
        )
    else:
        stem: dict[str, Any] = {"stem_channels": (32, 64, 96, 128)}
        if codes is not None:
            stem = _token_stem(params, index["tokenizers"]["image"], codes)
        config = make_config(
            input=params["input"],
            vocab_size=vocabulary.size,
            num_queries=NUM_QUERIES,
            max_positions=max(MAX_POSITIONS, longest + 1),
            dropout=params["dropout"],
            pad=vocabulary.pad,
            bos=vocabulary.bos,
            eos=vocabulary.eos,
            **stem,
        )
    config.max_units = max(config.max_units, longest)  # it may say all that it learns
    config.unit_codebook = vocabulary.codebook_fingerprint
    config.unit_vocabulary = None
    return config


def _token_stem(params: Mapping[str, Any], tokenizer: Mapping[str, Any], codes: torch.Tensor) -> dict[str, Any]:
    """What `make_config` is told of the tokens and of the layer that takes them."""
    whole, crop = tuple(tokenizer["grid"]), params["crop_tokens"]
    if crop > min(whole):
        raise InputError(f"train.crop_tokens: {crop} a side, but the shards' tokens are {whole[0]} x {whole[1]}")
    found: dict[str, Any] = {
        "token_vocab": len(codes),
        "token_dim": codes.shape[1],
        "token_grid": (crop, crop) if crop else whole,
        "image_tokenizer": tokenizer["fingerprint"],
    }
    if params["stem"] == "convolutions":
        return {**found, "stem_channels": (96, 128)}
    side = found["token_grid"][0]
    if side % 2 or found["token_grid"] != (side, side):
        raise InputError(f"train.stem: seit halves a square grid of even sides, not {found['token_grid']}")
    # As SeiT's ViT: half as many vectors a side as tokens, each said to be 16 pixels wide.
    return {**found, "stem_channels": (), "grid": side // 2, "image_size": 16 * (side // 2)}


def build_augmentation(
    params: Mapping[str, Any], model: Captioner, index: Mapping[str, Any]
) -> TokenAugmentation | None:
    """What `params["augment_*"]` ask for, None for nothing. InputError where it could have no effect."""
    names = AugmentationSettings.__dataclass_fields__
    settings = AugmentationSettings(**{name: params[f"augment_{name}"] for name in names})
    if not settings.is_on:
        return None
    if model.config.input != "tokens":
        raise InputError("train.augment_*: only image tokens are augmented, and train.input is pixels")
    grid, whole = tuple(model.config.token_grid), tuple(index["tokenizers"]["image"]["grid"])
    if settings.random_place and grid == whole:
        raise InputError(
            f"train.augment_random_place: the captioner takes the whole grid {whole}; for a part of it, set "
            "train.crop_tokens"
        )
    if settings.swap and settings.swap * min(whole) < 1:
        raise InputError(
            f"train.augment_swap: {settings.swap} of {whole[0]} x {whole[1]} tokens is less than one; give more than "
            f"1/{min(whole)}"
        )
    codebook = model.git.image_encoder.vision_model.embeddings.codebook
    return TokenAugmentation(settings, codebook, (grid[0], grid[1]), params["seed"])


def _codebook(shards_dir: Path, about: Mapping[str, Any], vqgan_dir: Path | None) -> torch.Tensor:
    """The tokenizer's codebook float32 [K, D], L2-normalised, as its decoder sees it."""
    codes = find_image_codebook(shards_dir, about, vqgan_dir)
    return torch.nn.functional.normalize(torch.from_numpy(codes), dim=-1)


def read_examples(
    shards_dir: Path,
    split: str,
    model: Captioner,
    to_pixels: ToPixels,
    limit: int | None = None,
    *,
    cache: bool = False,
) -> Examples:
    """All samples of a split with at least one caption, images as `model` takes them.

    cache: run the frozen vision tower once and keep its output. Raises InputError when the shards lack what
    the model needs (`shards.include_pixels` for pixels).
    """
    images: list[torch.Tensor] = []
    captions: list[list[list[int]]] = []
    for sample in tqdm(read_samples(shards_dir, split), desc=f"read {split}", unit="image", disable=None):
        if limit is not None and len(captions) >= limit:
            break
        if not sample.captions:
            continue
        images.append(_image(sample, f"{shards_dir}/{split}", model, to_pixels))
        captions.append([caption.units.tolist() for caption in sample.captions])
    if not images:
        raise InputError(f"{shards_dir}/{split}: no sample with an image and a spoken caption")
    stacked = torch.stack(images)
    return Examples(model.encode_images(stacked) if cache else stacked, captions)


def open_stream(shards_dir: Path, split: str, model: Captioner, to_pixels: ToPixels, seed: int) -> Stream:
    """The same samples as `read_examples`, read as they are needed; a frozen tower then runs at every step."""
    is_pixels = model.config.input == "pixels"
    source = TokenSource(shards_dir, split, seed=seed, pixels=is_pixels)
    return Stream(source, lambda example: _image(example, f"{shards_dir}/{split}", model, to_pixels))


def _image(sample: Sample | Example, where: str, model: Captioner, to_pixels: ToPixels) -> torch.Tensor:
    """One sample's tokens int64 [1, H, W] or pixels float32 [3, S, S]."""
    if model.config.input == "tokens":
        if sample.image is None:
            raise InputError(f"{where}: sample {sample.key} has no image tokens")
        return torch.from_numpy(sample.image.astype(np.int64))[None]
    if sample.jpg is None:
        raise InputError(f"{where}: no pixels; set shards.include_pixels and repeat that stage")
    with Image.open(io.BytesIO(sample.jpg)) as image:
        return to_pixels(image, model.config.vision_config.image_size, model.config.image_resize)
