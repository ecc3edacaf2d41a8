"""One file from anywhere that fsspec reaches (http, s3, gs, hf, a folder): in pieces, again after a fault, checked.

A piece that does not come is asked for again, smaller and after a pause; what has come stays in a `.part` file, from
which the next attempt or the next run goes on. A file gets its name only when size and SHA-256 are right.

`pipeline.fetch` is another thing: one stream over plain http for files whose size and hash nobody knows beforehand. It
tells versions apart by ETag, and needs nothing but the standard library. Neither could do the other's work: pieces need
a known size, and s3, gs and the Hub need fsspec.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import sha256_file

MAX_SMALL_BYTES = 256 * 2**20
"""No index or contents file may be larger."""

_PIECE, _SMALLEST_PIECE = 4 * 2**20, 64 * 2**10
_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub"}


class Remote:
    """A folder at a url. retries: faults in a row, without a byte of progress, before it gives up."""

    def __init__(
        self, url: str, *, retries: int = 5, pause: float = 0.5, options: dict[str, Any] | None = None
    ) -> None:
        self.url, self.retries, self.pause = url.rstrip("/"), retries, pause
        protocol = url.partition("://")[0] if "://" in url else "file"
        try:
            import fsspec

            self.fs, root = fsspec.url_to_fs(self.url, **{**_default_options(protocol), **(options or {})})
        except ImportError as error:
            package = _EXTRAS.get(protocol, protocol)
            raise InputError(f"{url}: needs the package '{package}': pip install {package} ({error})") from error
        except ValueError as error:
            raise InputError(f"{url}: not a url that fsspec knows ({error})") from error
        self.root = root.rstrip("/")
        self.transient = _transient_errors()

    def read(self, name: str) -> bytes | None:
        """A small file whole; None where there is none. InputError when it cannot be had."""
        path, faults = f"{self.root}/{name}", 0
        while True:
            try:
                data = self.fs.cat_file(path)
            except FileNotFoundError:
                return None
            except self.transient as error:
                faults = self._after_fault(name, faults, error)
                continue
            if len(data) > MAX_SMALL_BYTES:
                raise InputError(f"{self.url}/{name}: {len(data):,} bytes are too many")
            return data

    def fetch(self, name: str, size: int, sha256: str, path: Path, progress: Callable[[int], object]) -> bool:
        """Bring a file of known size and hash to `path`; False when it is there already.

        progress: called with the number of bytes that came. Raises InputError when it cannot be had, or when what
        came is not what the index says, twice.
        """
        if path.is_file() and path.stat().st_size == size and sha256_file(path) == sha256:
            progress(size)
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{sha256[:12]}.part")
        for attempt in range(2):
            self._complete(name, size, part, progress)
            if (found := sha256_file(part)) == sha256:
                os.replace(part, path)
                return True
            part.unlink()
            progress(-size)
            if attempt:
                raise InputError(f"{self.url}/{name}: its SHA-256 is {found}, the index says {sha256}; not kept")
        return True

    def _complete(self, name: str, size: int, part: Path, progress: Callable[[int], object]) -> None:
        """Append to `part` until it has `size` bytes."""
        have = min(part.stat().st_size, size) if part.is_file() else 0
        piece, faults = _PIECE, 0
        progress(have)
        with part.open("r+b" if part.is_file() else "w+b") as out:
            out.truncate(have)
            out.seek(have)
            while have < size:
                end = min(size, have + piece)
                try:
                    data = self.fs.cat_file(f"{self.root}/{name}", start=have, end=end)
                except FileNotFoundError as error:
                    raise InputError(f"{self.url}/{name}: the index lists it, but it is not there") from error
                except self.transient as error:
                    faults = self._after_fault(name, faults, error)
                    piece = max(_SMALLEST_PIECE, piece // 4)
                    continue
                if len(data) == size and len(data) > end - have:  # a server that does not know ranges sends all
                    data = data[have:]
                elif len(data) != end - have:
                    came = f"{len(data):,} bytes came for the {end - have:,} asked for (file of {size:,} by the index)"
                    faults = self._after_fault(name, faults, came)
                    continue
                out.write(data)
                out.flush()
                have, faults = have + len(data), 0
                progress(len(data))

    def _after_fault(self, name: str, faults: int, error: object) -> int:
        """Wait longer each time; InputError after too many, or at once for what waiting does not mend."""
        status = getattr(error, "status", None)
        refused = isinstance(error, PermissionError) or (status is not None and 400 <= status < 500 and status != 429)
        if refused or faults >= self.retries:
            what = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
            times = "" if refused else f" after {faults + 1} attempts"
            raise InputError(f"{self.url}/{name}: cannot be had{times} ({what}); run the same command to go on")
        time.sleep(min(30.0, self.pause * 2**faults))
        return faults + 1


def _default_options(protocol: str) -> dict[str, Any]:
    if protocol not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def _transient_errors() -> tuple[type[Exception], ...]:
    """What may go away by itself: lost connections, time-outs, answers cut short, servers in trouble."""
    try:
        import aiohttp
    except ImportError:
        return (OSError, EOFError)
    return (OSError, EOFError, aiohttp.ClientError)
