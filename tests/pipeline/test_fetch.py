"""Downloads from a local server that drops connections, lies about hashes, changes its mind and answers nonsense."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.errors import InputError
from pipeline.fetch import Patience, download
from pipeline.files import read_json
from pipeline.registry import read_registry
from stages.tools import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(attempts=3, pause=0.01, timeout=5)


class Server(ThreadingHTTPServer):
    """What it serves and how it misbehaves; `asked` are the ranges that it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = CONTENT, '"1"'
        self.drop_after: int | None = None
        self.ignore_range = self.busy = False
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range", "")
        server.asked.append(wanted)
        if self.path == "/gone":
            return self.send_error(404)
        if self.path == "/page":
            return self._answer(200, b"<html>quota exceeded</html>", {"Content-Type": "text/html; charset=utf-8"})
        if server.busy:
            server.busy = False
            return self.send_error(503)
        start = 0
        if wanted and not server.ignore_range and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(server.content):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(server.content)}"})
        headers = {"ETag": server.etag, "Content-Type": "application/octet-stream"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
        self._answer(206 if start else 200, server.content[start:], headers)

    def _answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        drop = self.server.drop_after
        self.wfile.write(body if drop is None else body[:drop])
        if drop is not None and drop < len(body):
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_comes_whole_and_is_not_fetched_twice(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "a" / "km.bin"
    found = download(f"{server.url}/km.bin", path, sha256=SHA256, patience=QUICK, progress=lambda *at: seen.append(at))
    assert found == SHA256 and path.read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT))
    download(f"{server.url}/km.bin", path, sha256=SHA256, patience=QUICK)
    assert len(server.asked) == 1 and sorted(p.name for p in path.parent.iterdir()) == ["km.bin"]


def test_dropped_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.drop_after = 70_000
    download(f"{server.url}/km.bin", tmp_path / "km.bin", sha256=SHA256, patience=QUICK)
    assert (tmp_path / "km.bin").read_bytes() == CONTENT
    assert server.asked == ["", "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]


def test_a_kill_is_continued_by_the_next_run(server: Server, tmp_path: Path) -> None:
    (tmp_path / "km.bin.part").write_bytes(CONTENT[:100_000])
    download(f"{server.url}/km.bin", tmp_path / "km.bin", sha256=SHA256, patience=QUICK)
    assert server.asked == ["bytes=100000-"] and (tmp_path / "km.bin").read_bytes() == CONTENT
    (tmp_path / "b.bin.part").write_bytes(CONTENT)  # complete, killed before it was renamed
    download(f"{server.url}/km.bin", tmp_path / "b.bin", sha256=SHA256, patience=QUICK)
    assert (tmp_path / "b.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    server.ignore_range = True
    (tmp_path / "km.bin.part").write_bytes(b"x" * 1000)
    download(f"{server.url}/km.bin", tmp_path / "km.bin", sha256=SHA256, patience=QUICK)
    assert (tmp_path / "km.bin").read_bytes() == CONTENT


def test_two_versions_of_a_file_are_never_glued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "km.bin.part").write_bytes(b"old" * 1000)
    (tmp_path / "km.bin.part.etag").write_text('"0"')
    download(f"{server.url}/km.bin", tmp_path / "km.bin", patience=QUICK)
    assert (tmp_path / "km.bin").read_bytes() == CONTENT


def test_a_wrong_hash_is_deleted_and_not_used(server: Server, tmp_path: Path) -> None:
    server.content = b"something else" * 1000
    with pytest.raises(InputError, match=f"but {SHA256} was published. The file was deleted and not used"):
        download(f"{server.url}/km.bin", tmp_path / "km.bin", sha256=SHA256, patience=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_on_disk_is_found(server: Server, tmp_path: Path) -> None:
    (tmp_path / "km.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="delete the file and fetch it again"):
        download(f"{server.url}/km.bin", tmp_path / "km.bin", sha256=SHA256, patience=QUICK)


def test_trouble_is_told_apart(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(InputError, match="is gone .HTTP 404"):
        download(f"{server.url}/gone", path, patience=QUICK)
    with pytest.raises(InputError, match="web page .a quota or a login"):
        download(f"{server.url}/page", path, patience=QUICK)
    server.drop_after = 0
    with pytest.raises(InputError, match=r"broke 3 times without anything new.*0 bytes are kept in .*x.part"):
        download(f"{server.url}/km.bin", path, patience=QUICK)
    with pytest.raises(InputError, match="cannot be reached.*offline|broke 3 times"):
        download("http://no-such-host.invalid/x", path, patience=QUICK)
    server.drop_after, server.busy = None, True
    download(f"{server.url}/km.bin", path, sha256=SHA256, patience=QUICK)


@pytest.fixture
def registry(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    entry = {"kind": "kmeans", "about": "units", "licence": "MIT", "then": "im2speech import kmeans ..."}
    document = {
        "km": {**entry, "files": [{"url": f"{server.url}/km.bin", "sha256": SHA256}]},
        "unhashed": {**entry, "files": [{"url": f"{server.url}/other.bin"}]},
        "drive": {**entry, "by_hand": "It is on a drive.", "belongs_with": ["km"]},
    }
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_command_shows_licence_hash_and_next_step(registry: Path, capsys: pytest.CaptureFixture) -> None:
    fetch.command(["km"], None, None, registry)
    out = capsys.readouterr().out
    assert "licence: MIT" in out and f"sha256 {SHA256} (as published)" in out and "next: im2speech import" in out
    assert read_json(Path("models/km/fetched.json")) == {"km.bin": SHA256}
    fetch.command(None, None, None, registry)
    assert "drive" in capsys.readouterr().out


def test_without_a_published_hash_the_first_one_is_kept(registry: Path, server: Server) -> None:
    fetch.command(["unhashed"], None, None, registry)
    Path("models/unhashed/other.bin").unlink()
    server.content = b"replaced"
    with pytest.raises(InputError, match="was published.*not used"):
        fetch.command(["unhashed"], None, None, registry)


def test_what_must_be_got_by_hand_says_so_and_takes_the_file(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="by hand. It is on a drive. Then: im2speech fetch drive --from FILE"):
        fetch.command(["drive"], None, None, registry)
    (tmp_path / "downloaded.ckpt").write_bytes(b"weights")
    fetch.command(["drive"], None, tmp_path / "downloaded.ckpt", registry)
    assert Path("models/drive/downloaded.ckpt").read_bytes() == b"weights"
    (tmp_path / "km.bin").write_bytes(CONTENT[:-5])
    with pytest.raises(InputError, match="but .* was published"):
        fetch.command(["km"], None, tmp_path / "km.bin", registry)
    assert not Path("models/km/km.bin").exists()
    (tmp_path / "km.bin").write_bytes(CONTENT)
    fetch.command(["km"], None, tmp_path, registry)
    assert Path("models/km/km.bin").read_bytes() == CONTENT


def test_trouble_names_the_way_by_hand(registry: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = b"changed"
    with pytest.raises(InputError, match=r"By hand: download http://.*km.bin, then im2speech fetch km --from FILE"):
        fetch.command(["km"], None, None, registry)
    with pytest.raises(InputError, match="no entry 'kn'; there are drive, km, unhashed"):
        fetch.command(["kn"], None, None, registry)


def test_the_registry_of_the_repository_is_sound() -> None:
    entries = read_registry(Path(__file__).parents[2] / "manifests/models.yaml")
    assert {entry.kind for entry in entries.values()} >= {"hubert", "kmeans", "vocoder", "vqgan", "captioner", "corpus"}
    for entry in entries.values():
        for other in entry.belongs_with:
            partner = entries[other]
            if entry.kind == "kmeans" and partner.kind == "hubert":
                assert entry.facts["encoder"] == partner.name
        assert all("?" not in file.name for file in entry.files)


def test_wrong_entries_are_named(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    good = {"kind": "kmeans", "about": "a", "licence": "b", "by_hand": "c"}
    for change, message in (
        ({"kind": "cat"}, "kind 'cat'; known are"),
        ({"licence": ""}, "the field 'licence'"),
        ({"sha": "1"}, "unknown field 'sha'"),
        ({"by_hand": ""}, "neither files nor by_hand"),
        ({"files": [{"url": "file:///etc/passwd"}]}, "not a web address"),
        ({"files": [{"url": "https://x/y", "name": "../y"}]}, "not a file's name"),
        ({"files": [{"url": "https://x/y", "sha256": "12"}]}, "not 64 hexadecimal"),
        ({"belongs_with": ["nobody"]}, "which is no entry"),
    ):
        path.write_text(yaml.safe_dump({"x": {**good, **change}}))
        with pytest.raises(InputError, match=message):
            read_registry(path)
