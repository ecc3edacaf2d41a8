"""Our loader: every sample once an epoch for any ranks and workers, resumable anywhere, nothing unpickled."""

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.tokens import parts, read
from pipeline.tokens.loader import Position, Share, TokenSource, bucket, pad_units
from tests.pipeline.tokens.making import make_samples, write_set

SIZES = [7, 1, 12, 5, 9, 3]
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("loader") / "set", {"train": SIZES})


def keys(source: TokenSource, *arguments, **options) -> list[str]:
    return [sample.key for sample, _ in source.samples(*arguments, **options)]


def shares(world_size: int, num_workers: int) -> list[Share]:
    workers = max(1, num_workers)  # no workers: the process itself is the only one
    return [Share(rank, world_size, worker, workers) for rank in range(world_size) for worker in range(workers)]


@pytest.mark.parametrize("num_workers", range(5))
@pytest.mark.parametrize("world_size", range(1, 9))
def test_every_sample_once_an_epoch_for_all_ranks_and_workers(shards, world_size, num_workers):
    source = TokenSource(shards, "train", seed=3, block=4)
    taken = [keys(source, 1, share) for share in shares(world_size, num_workers)]
    assert Counter(key for part in taken for key in part) == Counter(f"train/k-{n}" for n in range(TOTAL))
    sizes = [len(part) for part in taken]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [source.num_samples(share) for share in shares(world_size, num_workers)]


@settings(max_examples=40, deadline=None)
@given(
    world_size=st.integers(1, 40),
    num_workers=st.integers(0, 4),
    block=st.integers(1, 60),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_every_sample_once_whatever_the_settings(shards, world_size, num_workers, block, seed, epoch, shuffle):
    source = TokenSource(shards, "train", seed=seed, block=block, shuffle=shuffle)
    taken = Counter(key for share in shares(world_size, num_workers) for key in keys(source, epoch, share))
    assert set(taken.values()) == {1} and len(taken) == TOTAL


def test_even_shares_leave_out_the_rest_and_no_more(shards):
    source = TokenSource(shards, "train", even=True)
    for world_size in range(1, 9):
        taken = [keys(source, 0, share) for share in shares(world_size, 2)]
        assert {len(part) for part in taken} == {TOTAL // (2 * world_size)}
        assert len({key for part in taken for key in part}) == TOTAL - TOTAL % (2 * world_size)


def test_order_is_fixed_by_seed_and_epoch_and_is_shuffled(shards):
    source = TokenSource(shards, "train", seed=1)
    assert keys(source, 0) == keys(TokenSource(shards, "train", seed=1), 0)
    assert keys(source, 0) != keys(source, 1) != keys(TokenSource(shards, "train", seed=2), 1)
    in_order = [f"train/k-{n}" for n in range(TOTAL)]
    assert keys(TokenSource(shards, "train", shuffle=False), 5) == in_order != keys(source, 0)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_going_on_gives_exactly_what_was_left(shards, batch_size):
    source = TokenSource(shards, "train", seed=4, block=8)

    def taken(share: Share, after: Position | None = None) -> list[tuple[list[str], Position]]:
        if batch_size is None:
            return [([sample.key], position) for sample, position in source.samples(2, share, after)]
        found = source.batches(batch_size, 2, share, after)
        return [([example.caption.id for example in batch.examples], batch.after) for batch in found]

    for share in shares(2, 2):
        whole = taken(share)
        for stop, (_, position) in enumerate(whole, start=1):
            again = Position(**position.to_dict())
            assert [part for part, _ in taken(share, again)] == [part for part, _ in whole[stop:]]


def test_going_on_does_not_read_what_was_before(shards, monkeypatch):
    source = TokenSource(shards, "train", shuffle=False, block=8)
    position = Position(0, 0, 1, start=24, taken=0)
    opened = []
    walk = read.walk
    monkeypatch.setattr(read, "walk", lambda path, *rest: opened.append(Path(path).stem) or walk(path, *rest))
    assert keys(source, after=position)[0] == "train/k-24" and opened[0] == "00003"


def test_a_position_of_other_shares_is_refused(shards):
    source = TokenSource(shards, "train")
    with pytest.raises(InputError, match="share 1 of 4, but this is epoch 0, share 1 of 2"):
        keys(source, 0, Share(1, 2), Position(0, 1, 4))
    with pytest.raises(InputError, match="count from 0"):
        Share(2, 2)


def test_one_caption_an_image_takes_each_in_turn(shards):
    source = TokenSource(shards, "train", seed=5, captions="one")
    epochs = [{s.key: s.captions for s, _ in source.samples(epoch)} for epoch in range(2)]
    for key in epochs[0]:
        assert [len(captions[key]) for captions in epochs] == [1, 1]
        assert {captions[key][0].id for captions in epochs} == {f"{key}-0", f"{key}-1"}
    first = [captions[0].id[-1] for captions in epochs[0].values()]
    assert set(first) == {"0", "1"}
    by_share = {s.key: s.captions[0].id for share in shares(3, 2) for s, _ in source.samples(0, share)}
    assert by_share == {key: captions[0].id for key, captions in epochs[0].items()}


def test_restored_units_are_the_frames(shards):
    plain = {s.key: s for s, _ in TokenSource(shards, "train").samples()}
    for sample, _ in TokenSource(shards, "train", restored=True).samples():
        for caption, expected in zip(sample.captions, plain[sample.key].captions, strict=True):
            assert np.array_equal(caption.units, parts.restore(expected.units, expected.durations))
            assert len(caption.durations) == len(caption.units) and set(caption.durations.tolist()) == {1}


def test_batches_hold_every_caption_once_in_like_lengths(shards):
    source = TokenSource(shards, "train", seed=6)
    batches = list(source.batches(8))
    ids = Counter(example.caption.id for batch in batches for example in batch.examples)
    assert set(ids.values()) == {1} and len(ids) == 2 * TOTAL
    spreads = [np.ptp([len(e.caption.units) for e in batch.examples]) for batch in batches]
    assert np.mean(spreads) < 8 and max(len(batch.examples) for batch in batches) == 8
    units, lengths = pad_units(batches[0].examples, pad=99)
    assert units.shape == (8, lengths.max()) and (units[0] == 99).sum() == lengths.max() - lengths[0]
    assert bucket([3, 1, 2, 1], 2) == [[1, 3], [2, 0]] and bucket([], 4) == []


@pytest.mark.parametrize("num_workers", [0, 3])
def test_torch_workers_share_out_an_epoch_and_go_on(shards, num_workers):
    from torch.utils.data import DataLoader

    from pipeline.token_dataset import TokenDataset

    source = TokenSource(shards, "train", seed=7, block=8)

    def loader(**options) -> DataLoader:
        return DataLoader(TokenDataset(source, 4, **options), batch_size=None, num_workers=num_workers)

    taken: Counter[str] = Counter()
    whole: dict[int, list[list[str]]] = {0: [], 1: []}
    for rank in (0, 1):
        dataset = loader(rank=rank, world_size=2)
        for batch in dataset:
            taken.update(example.caption.id for example in batch.examples)
            whole[rank].append([example.caption.id for example in batch.examples])
    assert set(taken.values()) == {1} and len(taken) == 2 * TOTAL
    positions, seen = {}, []
    for batch in loader(rank=1, world_size=2):
        seen.append([example.caption.id for example in batch.examples])
        positions[batch.after.share] = batch.after
        if len(seen) == 3:
            break
    rest = loader(rank=1, world_size=2, positions=positions)
    left = [[example.caption.id for example in batch.examples] for batch in rest]
    assert sorted(seen + left) == sorted(whole[1])


def test_a_shard_that_is_cut_short_stops_the_epoch(tmp_path):
    shards = write_set(tmp_path / "set", {"train": [3, 3]})
    from pipeline.tokens.write import write_shard

    write_shard(shards / "train" / "00001.tar", make_samples("train", 2, 3))
    with pytest.raises(InputError, match=r"00001\.tar: holds 2 samples, its index says 3"):
        keys(TokenSource(shards, "train"))


def test_no_pickle_decoder_is_reachable():
    folder = Path(read.__file__).parent
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {"pickle", "torch", "joblib", "dill", "shelve", "marshal"} & (names | imported), path
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
