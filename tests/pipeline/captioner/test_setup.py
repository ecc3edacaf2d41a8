"""Examples are read as the trained captioner will later see pictures."""

import io

import pytest
import torch
from PIL import Image

from pipeline.captioner.model import Captioner, make_config
from pipeline.captioner.setup import read_examples
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.image_to_speech import ImageToSpeech
from pipeline.tokens.read import read_samples
from pipeline.vision.transforms import image_to_tensor
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
