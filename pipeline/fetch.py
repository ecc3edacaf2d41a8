"""Downloads one file: continued where it broke off, checked before it has its name.

What arrives goes to `<name>.part` (and what identifies the server's version of it to `<name>.part.etag`), so a
kill or a dropped connection costs nothing. Only a file whose sha256 is right gets its final name.

Token shards, whose sizes and hashes an index knows, come through `pipeline.tokens.remote`. A file on somebody's
server has neither, often no hash, and sometimes a login page in its place; that is what is dealt with here.
"""

import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import sha256_file

_CHUNK = 1 << 20


class _Dropped(Exception):
    """The connection ended before the file did."""


@dataclass(frozen=True)
class Patience:
    """attempts: tries without a single new byte before giving up; pause: seconds before the second, then doubled."""

    attempts: int = 5
    pause: float = 1.0
    timeout: float = 60.0


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    patience: Patience = Patience(),
    progress: Callable[[int, int], object] | None = None,
) -> str:
    """Fetch `url` to `path`; gives the file's sha256. A file that is there already is checked, not fetched.

    progress: called with (bytes so far, bytes in all or 0). Raises InputError when the server cannot be reached,
    refuses, answers with a web page, keeps dropping the connection, or sends another file than `sha256`.
    """
    if path.is_file():
        return check(path, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    failures, pause = 0, patience.pause
    while True:
        before = _size(part)
        try:
            _continue(url, part, patience.timeout, progress)
            break
        except (_Dropped, ConnectionError, TimeoutError, http.client.HTTPException, urllib.error.URLError) as error:
            _refuse_hopeless(url, error)
            failures, pause = (failures + 1, pause * 2) if _size(part) <= before else (1, patience.pause)
            if failures >= patience.attempts:
                raise InputError(
                    f"{url}: the connection broke {failures} times without anything new ({error}); "
                    f"{_size(part)} bytes are kept in {part}, the same command continues there"
                ) from error
            time.sleep(pause)
    found = sha256_file(part)
    if sha256 and found != sha256:
        part.unlink()
        _etag(part).unlink(missing_ok=True)
        raise InputError(
            f"{url}: sha256 is {found}, but {sha256} was published. The file was deleted and not used: it is damaged, "
            "was replaced, or is not what it says"
        )
    os.replace(part, path)
    _etag(part).unlink(missing_ok=True)
    return found


def check(path: Path, sha256: str) -> str:
    """The sha256 of a file on disk. InputError when it is not the one expected (if one is)."""
    found = sha256_file(path)
    if sha256 and found != sha256:
        raise InputError(f"{path}: sha256 is {found}, but {sha256} was published; delete the file and fetch it again")
    return found


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _etag(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _refuse_hopeless(url: str, error: Exception) -> None:
    """InputError for what trying again does not change."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code not in (408, 425, 429, 500, 502, 503, 504):
            reason = {401: "needs a login", 403: "is refused", 404: "is gone", 410: "is gone"}.get(error.code, "")
            raise InputError(f"{url}: {reason or 'cannot be had'} (HTTP {error.code} {error.reason})") from error
    elif isinstance(error, urllib.error.URLError) and isinstance(error.reason, socket.gaierror):
        raise InputError(f"{url}: cannot be reached ({error.reason}); this machine is offline") from error


def _continue(url: str, part: Path, timeout: float, progress: Callable[[int, int], object] | None) -> None:
    """One connection: append what is missing to `part`."""
    have, tag = _size(part), _etag(part)
    request = urllib.request.Request(url, headers={"User-Agent": "im2speech", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if tag.exists():
            # Another version of the file is then sent whole, never glued to the start of this one.
            request.add_header("If-Range", tag.read_text(encoding="utf-8"))
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return  # everything was there
        part.unlink()
        tag.unlink(missing_ok=True)
        raise _Dropped("the part on disk is longer than the file") from error
    with response:
        continued = response.status == 206
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise _Dropped("the server continued at another place than was asked for")
        if response.headers.get_content_type() == "text/html":
            raise InputError(f"{url}: the server answered with a web page (a quota or a login?), not with the file")
        length = response.headers.get("Content-Length")
        have = have if continued else 0
        total = have + int(length) if length is not None and length.isdecimal() else 0
        identity = response.headers.get("ETag", "")
        if identity and not identity.startswith("W/"):
            tag.write_text(identity, encoding="utf-8")
        with part.open("ab" if continued else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, total)
        if total and have < total:
            raise _Dropped(f"{have} of {total} bytes came")
