"""The captioner: both inputs, round trips that keep every weight, cached towers, generation as by hand."""

import numpy as np
import pytest
import torch
from transformers import GitConfig, GitForCausalLM

from pipeline.captioner.data import Examples
from pipeline.captioner.generation import generate_units
from pipeline.captioner.model import Captioner, clip_normalize, copy_matching, load_captioner, make_config
from pipeline.captioner.training import TrainingSettings, edit_distance, train_captioner, unit_error_rate
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError

SMALL = {"hidden_size": 32, "num_layers": 2, "vision_layers": 1, "num_heads": 2, "image_size": 32, "grid": 4}


def small(input: str, stem=(8, 16), vocab_size=23, **extra) -> Captioner:
    torch.manual_seed(0)
    tokens = {"token_vocab": 16, "token_dim": 6, "token_grid": (8, 8)} if input == "tokens" else {}
    config = make_config(input=input, vocab_size=vocab_size, stem_channels=stem, **SMALL, **tokens, **extra)
    model = Captioner(config).eval()
    if input == "tokens":
        torch.nn.init.normal_(model.git.image_encoder.vision_model.embeddings.codebook)
    return model


def images(input: str, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if input == "tokens":
        return torch.randint(0, 16, (number, 1, 8, 8), generator=generator)
    return torch.rand(number, 3, 32, 32, generator=generator)


@pytest.mark.parametrize("shape", [{}, {"num_queries": 3}, {"norm_first": False}])
@pytest.mark.parametrize("stem", [(), (8, 16)])
@pytest.mark.parametrize("input", ["tokens", "pixels"])
def test_save_and_load_keep_every_weight(input, stem, shape, tmp_path):
    model = small(input, stem, **shape)
    model.save_pretrained(tmp_path)
    again = load_captioner(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    ids = torch.tensor([[1, 5, 6, 7]])
    batch = images(input, 1)
    assert torch.equal(model(ids, pixel_values=batch).logits, again(ids, pixel_values=batch).logits)


def test_without_our_additions_it_is_transformers_git():
    """The same weights under the same names give the same logits as `GitForCausalLM`, but for [0, 1] pixels."""
    model = small("pixels", stem=(), norm_first=False)
    theirs = GitForCausalLM(GitConfig(**{k: v for k, v in model.config.to_dict().items() if k != "model_type"})).eval()
    theirs.load_state_dict(model.state_dict())
    ids, batch = torch.tensor([[1, 5, 6, 7]]), images("pixels", 1)
    with torch.inference_mode():
        assert torch.equal(
            model(ids, pixel_values=batch).logits, theirs(ids, pixel_values=clip_normalize(batch)).logits
        )


def test_copying_leaves_only_the_vocabulary_behind():
    source, target = small("tokens"), small("tokens", vocab_size=31)
    torch.nn.init.normal_(source.git.encoder.layer[0].attention.output.dense.weight)
    left = copy_matching(target, source, ("git.embeddings.word_embeddings.", "output."))
    assert left == ["git.embeddings.word_embeddings.weight", "output.weight", "output.bias"]
    for name, value in source.state_dict().items():
        assert name in left or torch.equal(value, target.state_dict()[name]), name


@pytest.mark.parametrize("input", ["tokens", "pixels"])
def test_a_cached_tower_changes_nothing(input):
    model, batch = small(input), images(input, 3)
    ids = torch.tensor([[1, 5, 6, 7]] * 3)
    with torch.inference_mode():
        direct = model(ids, pixel_values=batch).logits
        cached = model(ids, pixel_values=model.encode_images(batch)).logits
    assert float((direct - cached).abs().max()) < 1e-5


def test_the_text_never_changes_the_image_side_and_text_is_causal():
    model, batch = small("tokens"), images("tokens", 1)
    with torch.inference_mode():
        one = model(torch.tensor([[1, 5, 6]]), pixel_values=batch).logits
        two = model(torch.tensor([[1, 5, 9]]), pixel_values=batch).logits
    assert float((one[:, :-1] - two[:, :-1]).abs().max()) < 1e-5
    assert float((one[:, -1] - two[:, -1]).abs().max()) > 1e-4


@pytest.mark.parametrize("shape", [{}, {"num_queries": 3}, {"norm_first": False}])
def test_greedy_generation_equals_a_manual_loop_and_any_batch_size(shape):
    model, batch, vocabulary = small("tokens", **shape), images("tokens", 5), UnitVocabulary(20)
    spoken = generate_units(model, vocabulary, batch, max_length=12)
    one_by_one = generate_units(model, vocabulary, batch, max_length=12, batch_size=1)
    for number, units in enumerate(spoken):
        ids = [vocabulary.bos]
        with torch.inference_mode():
            for _ in range(12):
                logits = model(torch.tensor([ids]), pixel_values=batch[number : number + 1]).logits
                ids.append(int(logits[0, -1].argmax()))
                if ids[-1] == vocabulary.eos:
                    break
        expected = vocabulary.decode(ids)
        expected = [u for place, u in enumerate(expected) if place == 0 or u != expected[place - 1]]
        assert units.tolist() == expected == one_by_one[number].tolist()


def test_training_learns_what_each_image_says():
    """Four images, each with its own sentence: the loss falls and free speech becomes right."""
    model, vocabulary = small("tokens", dropout=0.0), UnitVocabulary(20)
    rng = np.random.default_rng(0)
    captions = [[rng.permutation(20)[:8].tolist()] for _ in range(4)]
    examples = Examples(images("tokens", 4), captions)
    settings = TrainingSettings(
        steps=250,
        batch_size=4,
        learning_rate=4e-3,
        pretrained_rate_scale=1.0,
        embedding_steps=3,
        warmup_steps=10,
        weight_decay=0.0,
        label_smoothing=0.0,
        clip_norm=1.0,
        max_length=16,
        evaluate_every=125,
        num_validation_images=4,
        seed=0,
    )
    figures = train_captioner(model, vocabulary, examples, examples, settings, lambda step, figures: None)
    assert figures["unit_error_rate"] < 0.05, figures
    spoken = generate_units(model, vocabulary, examples.images, max_length=16)
    assert [units.tolist() for units in spoken] == [several[0] for several in captions]


def test_a_frozen_tower_stays(tmp_path):
    model, vocabulary = small("tokens"), UnitVocabulary(20)
    model.freeze_vision()
    before = {k: v.clone() for k, v in model.git.image_encoder.state_dict().items()}
    examples = Examples(images("tokens", 2), [[[1, 2, 3]], [[4, 5, 6]]])
    settings = TrainingSettings(5, 2, 1e-2, 1.0, 0, 1, 0.1, 0.0, 1.0, 16, 5, 2, 0)
    train_captioner(model, vocabulary, examples, examples, settings, lambda step, figures: None)
    assert all(torch.equal(v, before[k]) for k, v in model.git.image_encoder.state_dict().items())


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path):
    """Stopped at step 6 of 12 and started again: bit for bit the uninterrupted run, dropout included."""
    vocabulary = UnitVocabulary(20)
    rng = np.random.default_rng(0)
    examples = Examples(images("tokens", 6), [[rng.permutation(20)[:8].tolist()] for _ in range(6)])
    settings = TrainingSettings(12, 2, 1e-2, 0.5, 8, 3, 0.1, 0.0, 1.0, 16, 3, 2, 0)

    class Stop(Exception):
        pass

    def stop_at_nine(step, figures):
        if step == 9:
            raise Stop

    whole, halves = small("tokens"), small("tokens")
    train_captioner(whole, vocabulary, examples, examples, settings, lambda step, figures: None)
    with pytest.raises(Stop):
        train_captioner(halves, vocabulary, examples, examples, settings, stop_at_nine, tmp_path / "c")
    assert (tmp_path / "c").exists()
    halves = small("tokens")
    train_captioner(halves, vocabulary, examples, examples, settings, lambda step, figures: None, tmp_path / "c")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[name]), name


def test_captions_that_never_fit_are_an_error():
    model, vocabulary = small("tokens"), UnitVocabulary(20)
    examples = Examples(images("tokens", 1), [[[1, 2, 3, 4, 5, 6]]])
    settings = TrainingSettings(1, 1, 1e-2, 1.0, 0, 1, 0.1, 0.0, 1.0, 4, 1, 1, 0)
    with pytest.raises(InputError, match="max_length"):
        train_captioner(model, vocabulary, examples, examples, settings, lambda step, figures: None)


def test_unit_error_rate_takes_the_nearest_reference():
    assert edit_distance([1, 2, 3], [1, 3]) == 1 and edit_distance([], [1, 2]) == 2 and edit_distance([1], []) == 1
    assert unit_error_rate([1, 2, 3], [[9, 9, 9, 9], [1, 2, 4]]) == pytest.approx(1 / 3)


def test_a_folder_without_a_captioner_is_named(tmp_path):
    with pytest.raises(InputError, match="no captioner there"):
        load_captioner(tmp_path)


def test_tokens_vectors_and_the_centre_of_a_larger_grid_are_one_image():
    model, batch = small("tokens"), images("tokens", 2)
    larger = torch.nn.functional.pad(batch, (2, 2, 1, 1), value=9)
    codebook = model.git.image_encoder.vision_model.embeddings.codebook
    expected = model.encode_images(batch)
    for same in (codebook[batch[:, 0]].permute(0, 3, 1, 2), larger):
        assert torch.equal(model.encode_images(same), expected)
