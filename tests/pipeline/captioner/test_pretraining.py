"""GIT's pretraining: labels out of captions, words there and back, and a recipe that learns and resumes."""

import numpy as np
import torch

from pipeline.captioner.image_text import BOS, EOS, decode_text, encode_texts, wide_pairs, word_vocabulary
from pipeline.captioner.model import make_config
from pipeline.captioner.text_pretraining import pretrain_git
from pipeline.captioner.vision_pretraining import NUM_QUERIES, scene_labels, word_labels
from pipeline.corpora.world.scenes import SIZES, WIDE_COLOURS, WIDE_SHAPES


def test_any_caption_of_a_scene_gives_the_same_labels():
    ways = ["a small red star above a large ring", "the large ring is below the small red star"]
    first, second = (scene_labels([[way]])[0].tolist() for way in ways)
    assert first == second
    assert first[:3] == [WIDE_COLOURS.index("red"), WIDE_SHAPES.index("star"), SIZES.index("small")]
    assert first[3:] == [-100, WIDE_SHAPES.index("ring"), SIZES.index("large"), 0]
    assert scene_labels([["a small red star in the middle"]]).tolist() == [[-100] * 7]


def test_word_labels_hold_the_first_caption():
    labels = word_labels([["a b", "c"], ["b d"]])
    assert labels.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_words_come_back():
    texts = ["a red star", "a ring"]
    words = word_vocabulary([texts])
    ids = encode_texts(texts, words)
    assert ids[0, 0] == BOS and ids[0, -1] == EOS and int(ids.max()) == len(words) + 2
    assert [decode_text(row[1:].tolist(), words) for row in ids] == texts


def test_pictures_and_captions_do_not_depend_on_workers():
    one, two = (wide_pairs(260, 3, 32, workers) for workers in (1, 2))
    assert np.array_equal(one[0], two[0]) and one[1] == two[1]


def test_the_recipe_runs_resumes_and_learns(tmp_path):
    def config(vocab_size: int):
        return make_config(
            input="pixels",
            vocab_size=vocab_size,
            hidden_size=32,
            num_layers=1,
            vision_layers=1,
            num_heads=2,
            image_size=32,
            stem_channels=(8, 16),
            num_queries=NUM_QUERIES,
            dropout=0.0,
        )

    def run(folder):
        events = []
        figures = pretrain_git(
            folder,
            config,
            lambda pictures: torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
            num_images=60,
            see_steps=4,
            say_steps=30,
            batch_size=4,
            see_rate=1e-2,
            say_rate=1e-2,
            seed=0,
            num_workers=1,
            log=lambda **fields: events.append(fields),
        )
        return figures, events

    figures, events = run(tmp_path)
    assert set(figures) == {"loss", "val", "test", "test_novel"}
    assert figures["loss"] < np.log(30)
    again, events = run(tmp_path)
    assert any(event["event"] == "resumed" for event in events)
    assert set(again) == set(figures)
