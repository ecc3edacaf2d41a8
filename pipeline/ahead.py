"""Reading ahead: files are opened and decoded in threads while the model works on what came before.

Used where a stage feeds a model. Memory holds at most `depth` items beyond the one in use.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T], *, num_threads: int = 1, depth: int = 2) -> Iterator[R]:
    """`function(item)` for every item, in order, computed by threads up to `depth` items ahead.

    What a call raises is raised here, in its turn. Threads suit work that lets go of the interpreter's lock:
    reading, decoding and resampling do.
    """
    left = iter(items)
    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[Future[R]] = deque(pool.submit(function, item) for item in islice(left, depth))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(left, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
