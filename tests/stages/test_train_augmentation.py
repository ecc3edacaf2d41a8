"""The stage train with augmented tokens: other pictures at every step, a frozen tower or not; SeiT's stem and crop."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.files import read_json
from stages import train
from tests.stages.made_shards import context, make_shards

SMALL = {"init": "none", "steps": 2, "evaluate_every": 2, "batch_size": 8, "num_pieces": 0, "num_validation_images": 2}
EVERYTHING = {"augment_synonyms": 0.2, "augment_swap": 0.5, "augment_crop": 0.5, "augment_noise": 0.2}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), include_pixels=True)


def trained(made: Path, out: Path, **params) -> bytes:
    train.run(train.Params(**{**SMALL, **params}), context(out, "train"), shards=made, out=out / "train")
    return (out / "train/model/model.safetensors").read_bytes()


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_augmented_training_is_repeatable_and_not_the_plain_one(made, tmp_path, freeze_vision):
    first = trained(made, tmp_path / "1", freeze_vision=freeze_vision, **EVERYTHING)
    assert first == trained(made, tmp_path / "2", freeze_vision=freeze_vision, **EVERYTHING)
    assert first != trained(made, tmp_path / "3", freeze_vision=freeze_vision)


def test_seits_stem_and_crop(made, tmp_path):
    trained(made, tmp_path, stem="seit", crop_tokens=2, augment_random_place=True)
    config = read_json(tmp_path / "train/model/config.json")
    assert config["token_grid"] == [2, 2] and config["stem_channels"] == []
    vision = config["vision_config"]
    assert vision["image_size"] // vision["patch_size"] == 1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"input": "pixels", "augment_swap": 0.2}, "only image tokens are augmented"),
        ({"input": "pixels", "stem": "seit"}, "train.input tokens, train.init none"),
        ({"augment_random_place": True}, r"takes the whole grid \(4, 4\).*train.crop_tokens"),
        ({"augment_swap": 0.2}, "train.augment_swap: 0.2 of 4 x 4 tokens is less than one; give more than 1/4"),
        ({"crop_tokens": 5}, "train.crop_tokens: 5 a side, but the shards' tokens are 4 x 4"),
        ({"crop_tokens": 3, "stem": "seit"}, "train.stem: seit halves a square grid of even sides"),
        ({"init": "bundled", "crop_tokens": 2}, "train.init none"),
    ],
)
def test_what_could_have_no_effect_is_refused(made, tmp_path, params, message):
    with pytest.raises(InputError, match=message):
        trained(made, tmp_path, **params)
