"""Training: schedules, turns, precision, averages, patience, budgets of tokens, streams; going on from any step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.captioner.averaging import WeightAverage
from pipeline.captioner.batches import MemoryFeed, Sharing, Stream, StreamFeed
from pipeline.captioner.checkpoint import load_checkpoint
from pipeline.captioner.data import Examples, epoch_batches
from pipeline.captioner.distributed import Processes
from pipeline.captioner.optimizer import train_mode
from pipeline.captioner.schedules import rate_factor
from pipeline.captioner.training import TrainingSettings, Watch, _make_feed, _Run, train_captioner
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError
from pipeline.tokens.loader import TokenSource
from tests.pipeline.captioner.test_model import images, small
from tests.pipeline.tokens.making import write_set

VOCABULARY = UnitVocabulary(20)
SETTINGS = TrainingSettings(
    steps=12,
    batch_size=4,
    learning_rate=1e-2,
    pretrained_rate_scale=0.5,
    embedding_steps=3,
    warmup_steps=3,
    weight_decay=0.1,
    label_smoothing=0.1,
    clip_norm=1.0,
    max_length=16,
    evaluate_every=6,
    num_validation_images=2,
    seed=0,
)


def examples(number: int = 7) -> Examples:
    rng = np.random.default_rng(0)
    return Examples(images("tokens", number), [[rng.permutation(20)[: 4 + i].tolist()] for i in range(number)])


def learn(
    settings: TrainingSettings, checkpoint=None, log=None, dropout: float = 0.1, data=None, frozen=False, **options
):
    """(model, final figures, what was logged) of a training from the same beginning."""
    model, told = small("tokens", dropout=dropout), []
    if frozen:
        model.freeze_vision()

    def tell(step, figures):
        told.append((step, figures))
        if log is not None:
            log(step, figures)

    data = examples() if data is None else data
    final = train_captioner(model, VOCABULARY, data, examples(), settings, tell, checkpoint, **options)
    return model, final, told


def assert_same(first, second) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def distance(first, second, skip: str = "none") -> float:
    other = second.state_dict()
    kept = {name: value for name, value in first.state_dict().items() if not name.endswith(skip)}
    return max(float((value - other[name]).abs().max()) for name, value in kept.items())


def test_schedules_by_name():
    def rates(name):
        return [rate_factor(name, step, 4, 12) for step in range(12)]

    assert rates("cosine")[:4] == [0.25, 0.5, 0.75, 1.0] == rates("linear")[:4] == rates("constant")[:4]
    assert rates("reference")[:4] == [0.0, 0.25, 0.5, 0.75] and rates("reference")[4:] == rates("cosine")[4:]
    assert rates("cosine")[8] == pytest.approx(0.5) == rates("linear")[8] and set(rates("constant")[4:]) == {1.0}
    with pytest.raises(InputError, match="schedule"):
        rate_factor("steps", 0, 1, 2)


def test_turns_change_nothing_but_rounding():
    """With a tower in training its batch norm would see a turn at a time."""
    whole, _, told = learn(SETTINGS, dropout=0.0, frozen=True)
    turns, _, told_in_turns = learn(replace(SETTINGS, accumulation_steps=3), dropout=0.0, frozen=True)
    # A key's bias moves all scores of a row alike: its gradient is rounding alone, and Adam makes steps of it.
    assert distance(whole, turns, skip="key.bias") < 2e-5
    for (_, figures), (_, other) in zip(told, told_in_turns, strict=True):
        assert figures["loss"] == pytest.approx(other["loss"], abs=1e-4)


@pytest.mark.parametrize("saved", [2, 5, 7])
def test_a_run_goes_on_bit_for_bit_from_any_step(saved, tmp_path):
    """Turns, a weight average, dropout and steps of embeddings alone; broken off behind a save between evaluations."""
    settings = replace(SETTINGS, accumulation_steps=2, ema_decay=0.9, save_every=saved)

    class PowerCut(Exception):
        pass

    def cut(step, figures):
        if step > saved:
            raise PowerCut

    whole, final, told = learn(settings)
    with pytest.raises(PowerCut):
        learn(settings, tmp_path / "c", cut)
    assert load_checkpoint(tmp_path / "c").facts["step"] % saved == 0
    again, final_again, told_again = learn(settings, tmp_path / "c")
    assert_same(whole, again)
    assert final == final_again and [list(line) for line in told] == [list(line) for line in told_again]
    # Finished, but its result was lost: it is there again without a step.
    finished, _, _ = learn(settings, tmp_path / "c")
    assert_same(whole, finished)


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_refused(tmp_path):
    learn(SETTINGS, tmp_path / "c")
    with pytest.raises(InputError, match="another model"):
        train_captioner(
            small("tokens", vocab_size=31), UnitVocabulary(28), examples(), examples(), SETTINGS, print, tmp_path / "c"
        )
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:1000])
    with pytest.raises(InputError, match="remove it to start anew"):
        learn(SETTINGS, tmp_path / "c")


def test_a_checkpoint_leaves_out_what_is_frozen(tmp_path):
    model = small("tokens")
    model.freeze_vision()
    train_captioner(model, VOCABULARY, examples(), examples(), SETTINGS, lambda *_: None, tmp_path / "c")
    assert not any("image_encoder" in n and "weight" in n for n in load_checkpoint(tmp_path / "c").groups["model"])


def test_bf16_runs_on_a_cpu_and_fp16_says_what_it_needs():
    _, exact, _ = learn(SETTINGS)
    _, rough, _ = learn(replace(SETTINGS, precision="bf16"))
    assert rough["loss"] != exact["loss"] and rough["loss"] == pytest.approx(exact["loss"], rel=0.05)
    with pytest.raises(InputError, match="fp16"):
        learn(replace(SETTINGS, precision="fp16"))


def test_the_loss_scale_of_fp16_goes_on_where_it_was(tmp_path):
    """By the parts of a training, since a whole one in fp16 needs a GPU."""
    settings, processes = replace(SETTINGS, precision="fp16"), Processes(torch.device("cpu"))

    def begin() -> _Run:
        feed = _make_feed(examples(), VOCABULARY, settings, processes)
        return _Run(small("tokens"), VOCABULARY, feed, examples(), settings, processes)

    run, resumed = begin(), begin()
    fresh = run._scaler.state_dict()
    for step in (1, 2, 3):
        run.learn(step)
    run.save(tmp_path / "c")
    resumed.restore(tmp_path / "c")
    assert resumed._scaler.state_dict() == run._scaler.state_dict() != fresh


def test_the_average_is_what_it_says_and_what_is_evaluated():
    weight = torch.nn.Parameter(torch.zeros(2))
    average = WeightAverage({"w": weight}, decay=0.5)
    weight.data += 1.0
    average.update(100)
    assert average.weights["w"].tolist() == [0.5, 0.5]
    with average.applied():
        assert weight.tolist() == [0.5, 0.5]
    assert weight.tolist() == [1.0, 1.0]
    plain, _, told = learn(SETTINGS)
    mean, _, told_of_mean = learn(replace(SETTINGS, ema_decay=0.99))
    assert told[-1][1]["loss"] == told_of_mean[-1][1]["loss"]  # the training is the same
    assert told[-1][1]["validation_loss"] != told_of_mean[-1][1]["validation_loss"]
    assert distance(plain, mean) > 0


def test_patience_ends_a_run_that_gets_worse():
    settings = replace(SETTINGS, evaluate_every=1, patience=2, learning_rate=2.0, warmup_steps=1, steps=40)
    _, _, told = learn(settings)
    assert 3 <= len(told) < 40


def test_a_loss_that_is_no_number_is_said():
    data = examples()
    broken = Examples(data.images, data.captions)
    model = small("tokens")
    model.output.bias.data += float("nan")
    with pytest.raises(InputError, match="learning_rate"):
        train_captioner(model, VOCABULARY, broken, data, SETTINGS, lambda *_: None)


def test_who_watches_changes_nothing():
    def listen(step, spoken):
        assert len(spoken) == 2
        return {"drawn": float(torch.rand(1))}

    live = []
    plain, _, _ = learn(SETTINGS)
    watched, final, _ = learn(SETTINGS, watch=Watch(listen, lambda step, figures: live.append(figures)))
    assert_same(plain, watched)
    assert "drawn" in final and "tokens_per_second" not in final and "tokens_per_second" in live[0]


def test_batches_by_tokens_fill_their_budget():
    lengths = np.random.default_rng(0).integers(3, 40, 300)
    pairs = [(0, [1] * int(length)) for length in lengths]
    batches = list(epoch_batches(pairs, 0, np.random.default_rng(1), batch_tokens=200))
    assert sorted(i for batch in batches for i in batch) == list(range(300))
    padded = [max(lengths[batch]) * len(batch) for batch in batches]
    assert max(padded) <= 200 and np.mean(padded) > 150


@pytest.mark.parametrize("num_parts", [1, 3])
def test_the_shares_of_all_processes_are_the_batch(num_parts):
    def feed(sharing):
        return MemoryFeed(examples(), VOCABULARY, batch_size=4, batch_tokens=0, max_length=16, seed=0, sharing=sharing)

    alone, shared = feed(Sharing()), [feed(Sharing(rank, 3, num_parts)) for rank in range(3)]
    for _ in range(6):
        whole, turns = next(alone), [next(one) for one in shared]
        parts = [part for turn in turns for part in turn.parts if part.num_tokens]
        assert sum(part.num_tokens for part in parts) == whole.num_tokens == turns[0].num_tokens
        told = sorted(row[row > 0].tolist() for part in parts for row in part.ids)
        assert told == sorted(row[row > 0].tolist() for row in whole.parts[0].ids)
        assert len({len(turn.parts) for turn in turns}) == 1  # a batch norm over all of them waits at every turn


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Stream:
    folder = write_set(tmp_path_factory.mktemp("stream") / "set", {"train": [7, 4, 6]})

    def image(example):
        generator = torch.Generator().manual_seed(int(example.image.sum()))
        return torch.randint(0, 16, (1, 8, 8), generator=generator)

    return Stream(TokenSource(folder, "train", block=5), image)


def test_processes_that_stream_take_as_many_turns(stream):
    def feed(rank):
        sharing = Sharing(rank, 2, num_parts=3)
        return StreamFeed(stream, VOCABULARY, batch_size=5, batch_tokens=0, max_length=30, sharing=sharing)

    feeds = [feed(rank) for rank in range(2)]
    turns = [next(one) for _ in range(8) for one in feeds]
    assert {len(turn.parts) for turn in turns} == {3}
    assert any(part.num_tokens == 0 for turn in turns for part in turn.parts)


def test_a_tower_rests_while_only_new_weights_learn():
    """Whether or not its gradients are computed: several processes compute them all."""
    model = small("tokens")
    train_mode(model)
    assert model.git.image_encoder.training and model.git.encoder.training
    train_mode(model, only_new=True)
    assert not model.git.image_encoder.training and model.git.encoder.training


@pytest.mark.parametrize("budget", [0, 60])
def test_a_stream_goes_on_where_it_stood(stream, budget):
    def feed():
        return StreamFeed(
            stream, VOCABULARY, batch_size=3, batch_tokens=budget, max_length=30, sharing=Sharing(num_parts=2)
        )

    def told(turn):
        return [part.ids.tolist() for part in turn.parts]

    whole = feed()
    turns = [told(next(whole)) for _ in range(40)]
    assert whole.position()[0] >= 1 and whole.num_too_long > 0
    first = feed()
    for _ in range(25):
        next(first)
    second = feed()
    second.go_on(25, first.position())
    assert [told(next(second)) for _ in range(15)] == turns[25:]
    assert second.position() == whole.position()


def test_training_from_a_stream_goes_on_bit_for_bit(stream, tmp_path):
    settings = replace(SETTINGS, save_every=4, max_length=40)

    class PowerCut(Exception):
        pass

    def cut(step, figures):
        raise PowerCut

    whole, final, _ = learn(settings, data=stream)
    with pytest.raises(PowerCut):
        learn(settings, tmp_path / "c", cut, data=stream)
    again, final_again, _ = learn(settings, tmp_path / "c", data=stream)
    assert_same(whole, again)
    assert final == final_again and final["num_captions"] == 34


def test_a_stream_without_a_fitting_caption_is_an_error(stream):
    with pytest.raises(InputError, match="max_length"):
        learn(replace(SETTINGS, max_length=4), data=stream)
