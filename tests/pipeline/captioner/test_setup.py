"""Examples are read as the trained captioner will later see pictures; it may say what it learns, however long."""

import io

import pytest
import torch
from PIL import Image

from pipeline.captioner.model import Captioner, make_config
from pipeline.captioner.setup import build_captioner, read_examples
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError
from pipeline.image_to_speech import ImageToSpeech
from pipeline.tokens.index import read_index
from pipeline.tokens.read import read_samples
from pipeline.vision.transforms import image_to_tensor
from stages.train import Params
from tests.stages.made_shards import make_shards


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_pixels_in_training_are_those_of_speaking(resize, tmp_path):
    shards = make_shards(tmp_path, include_pixels=True)
    config = make_config(input="pixels", vocab_size=9, hidden_size=32, image_size=32, stem_channels=(8, 16, 16))
    config.image_resize = resize
    model = Captioner(config)
    pictures = [Image.open(io.BytesIO(sample.jpg)) for sample in read_samples(shards, "train") if sample.captions]
    speaking = ImageToSpeech(model, UnitVocabulary(5, ""), None, None).prepare(pictures)
    assert torch.equal(read_examples(shards, "train", model, image_to_tensor).images, speaking)
    assert resize == "squash" or not torch.equal(speaking[0], image_to_tensor(pictures[0], 32))


@pytest.mark.parametrize(
    ("init", "max_length", "most"), [("none", 100, 256), ("none", 500, 499), ("bundled", 385, 384)]
)
def test_a_captioner_may_say_captions_as_long_as_it_learns(init, max_length, most, tmp_path):
    shards = make_shards(tmp_path)
    params = Params(init=init, max_length=max_length, num_pieces=0).model_dump()
    model, _ = build_captioner(params, shards, read_index(shards, "train"))
    assert model.config.max_units == most
    ids = torch.ones(1, max_length - 1, dtype=torch.int64)
    assert model.caption_logits(torch.zeros(1, 1, 4, 128), ids).shape[1] == max_length - 1


def test_captions_longer_than_what_init_has_positions_for_are_refused(tmp_path):
    shards = make_shards(tmp_path)
    with pytest.raises(InputError, match=r"train.max_length: bundled has 384 positions, so at most 385, not 386"):
        build_captioner(Params(max_length=386).model_dump(), shards, read_index(shards, "train"))
