"""k-means at size: Lloyd's iterations over growing samples of a mapped array, several K in one pass.

Takes float32 [N, D] that may be a memory map far larger than memory, gives centroids. Mini-batch k-means (the
field's recipe) spends its time on many initialisations and on small noisy steps. Here a greedy k-means++ start
is refined on a small sample until it stands still, then on larger ones that hold the smaller (nested samples,
as Newling and Fleuret 2016 use them), and the last passes see every row. Rows are read in blocks and moved to
the device once for all K; the blocks' sums are added in order, so the number of threads does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from pipeline.ahead import ahead
from pipeline.errors import InputError

_BLOCK_ROWS = 8192
# Rows a cluster in the first sample; each next sample is so many times larger.
_FIRST_ROWS, _GROWTH = 64, 4
# A sample is left when a pass lowers the inertia by less than this share, or after so many passes.
_GAIN, _PASSES = 1e-3, 15


@dataclass
class _Total:
    """Of the rows seen so far, for one codebook: sums [K, D] and counts [K], inertia, rows far from any centroid."""

    sums: torch.Tensor
    counts: torch.Tensor
    inertia: float
    far: list[tuple[float, torch.Tensor]]

    def add(self, other: "_Total") -> None:
        self.sums += other.sums
        self.counts += other.counts
        self.inertia += other.inertia
        self.far += other.far

    def centroids(self, old: torch.Tensor) -> torch.Tensor:
        """The means; an empty cluster goes to one of the rows that were worst placed."""
        means = (self.sums / self.counts.clamp_min(1)[:, None]).to(old.dtype)
        means[self.counts == 0] = old[self.counts == 0]
        empty = torch.nonzero(self.counts == 0).flatten().tolist()
        for index, (_, row) in zip(empty, sorted(self.far, key=lambda pair: -pair[0]), strict=False):
            means[index] = row
        return means


def fit_lloyd(
    features: npt.NDArray[np.float32],
    nums_clusters: Sequence[int],
    *,
    seed: int,
    device: str = "cpu",
    num_threads: int = 1,
    full_passes: int = 2,
) -> list[npt.NDArray[np.float32]]:
    """Centroids float32 [K, D] for every K of `nums_clusters`, fitted to float32 [N, D].

    full_passes: passes over all N rows at the end. Raises InputError when there are fewer rows than clusters.
    """
    largest = max(nums_clusters)
    if len(features) < largest:
        raise InputError(f"kmeans: {len(features)} frames cannot make {largest} clusters; lower num_clusters")
    order = np.random.default_rng([seed, 0]).permutation(len(features))
    size = min(len(features), _FIRST_ROWS * largest)
    first = np.ascontiguousarray(features[np.sort(order[:size])])
    tables = [_plus_plus(first, k, seed).to(device) for k in nums_clusters]
    kept = torch.get_num_threads()
    torch.set_num_threads(1)  # each block on one thread: sums over threads differ in their last bits
    try:
        with tqdm(desc="kmeans", unit="pass", disable=None) as progress:
            settle = partial(_settle, features, device=device, num_threads=num_threads, progress=progress)
            while size < len(features):
                tables = settle(np.sort(order[:size]), tables, max_passes=_PASSES)
                size = min(len(features), size * _GROWTH)
            tables = settle(None, tables, max_passes=full_passes)
    finally:
        torch.set_num_threads(kept)
    return [table.cpu().numpy() for table in tables]


def _plus_plus(rows: npt.NDArray[np.float32], num_clusters: int, seed: int) -> torch.Tensor:
    """scikit-learn's greedy k-means++, on one thread for the same bytes anywhere."""
    from sklearn.cluster import kmeans_plusplus
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return torch.from_numpy(np.ascontiguousarray(kmeans_plusplus(rows, num_clusters, random_state=seed)[0]))


def _settle(
    features: npt.NDArray[np.float32],
    chosen: npt.NDArray[np.int64] | None,
    tables: list[torch.Tensor],
    *,
    max_passes: int,
    device: str,
    num_threads: int,
    progress: "tqdm[Any]",
) -> list[torch.Tensor]:
    """Lloyd's iterations over the chosen rows (None: all) until the inertia stands still."""
    num_rows = len(features) if chosen is None else len(chosen)
    last = float("inf")
    for _ in range(max_passes):
        sums = partial(_block, features, chosen, tables, device)
        blocks = ahead(sums, range(0, num_rows, _BLOCK_ROWS), num_threads=num_threads, depth=num_threads + 2)
        totals = next(blocks)
        for block in blocks:
            for total, found in zip(totals, block, strict=True):
                total.add(found)
        tables = [total.centroids(table) for total, table in zip(totals, tables, strict=True)]
        inertia = sum(total.inertia for total in totals)
        progress.update()
        progress.set_postfix(rows=num_rows, inertia=f"{inertia / num_rows / len(tables):.4f}", refresh=False)
        if inertia > last * (1 - _GAIN):
            break
        last = inertia
    return tables


@torch.no_grad()
def _block(
    features: npt.NDArray[np.float32],
    chosen: npt.NDArray[np.int64] | None,
    tables: Sequence[torch.Tensor],
    device: str,
    start: int,
) -> list[_Total]:
    """Sums of one block of rows for every codebook."""
    stop = start + _BLOCK_ROWS
    rows = np.array(features[start:stop] if chosen is None else features[chosen[start:stop]], np.float32)
    block = torch.from_numpy(rows).to(device)
    squares = block.square().sum(1)
    totals = []
    for table in tables:
        half = 0.5 * table.square().sum(1)
        best, ids = torch.addmm(half, block, table.T, alpha=-1).min(1)
        distances = squares + 2 * best
        counts = torch.bincount(ids, minlength=len(table))
        if block.device.type == "cpu":
            sums = torch.zeros_like(table).index_add_(0, ids, block)
        else:  # index_add_ adds in any order there; a product with the indicator matrix repeats itself
            sums = torch.nn.functional.one_hot(ids, len(table)).T.float() @ block
        worst = int(distances.argmax())
        far = [(float(distances[worst]), block[worst].clone())]
        totals.append(_Total(sums.double(), counts, float(distances.sum(dtype=torch.float64)), far))
    return totals
