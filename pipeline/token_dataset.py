"""Token shards as a torch data set: batches for DataLoader, split over ranks and workers by themselves.

dataset = TokenDataset(TokenSource(Path("data/shards"), "train", captions="one"), batch_size=64, rank=rank, ...)
for batch in DataLoader(dataset, batch_size=None, num_workers=4):
    ...
    dataset.positions[batch.after.share] = batch.after     # to go on from here: give them to a new TokenDataset
"""

from collections.abc import Iterator, Mapping

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.tokens.loader import Batch, Position, Share, TokenSource


class TokenDataset(IterableDataset[Batch]):
    """One epoch of a `TokenSource` in batches of like length; `epoch` may be set between two loops over it.

    positions: share -> where to go on, of an epoch that was interrupted; it takes as many ranks and workers as before.
    """

    def __init__(
        self,
        source: TokenSource,
        batch_size: int,
        *,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        positions: Mapping[int, Position] | None = None,
    ) -> None:
        self.source, self.batch_size, self.epoch = source, batch_size, epoch
        self.rank, self.world_size = rank, world_size
        self.positions: dict[int, Position] = dict(positions or {})

    def share(self) -> Share:
        """Ours: of this rank, and of this worker when a DataLoader's worker asks."""
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        return Share(self.rank, self.world_size, worker, num_workers)

    def __iter__(self) -> Iterator[Batch]:
        share = self.share()
        after = self.positions.get(share.number)
        if after is not None and after.epoch != self.epoch:  # of an epoch that is over
            after = None
        yield from self.source.batches(self.batch_size, self.epoch, share, after)
