"""A small file server for tests: ranges or none, lost connections, lies. Serves one folder on a free local port."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Behaviour:
    """How the server treats its clients. Names are paths relative to the folder.

    drops: how many of the first answers for each file break off in the middle; lies: name -> bytes to send in place
    of the file's; refused: name -> status; ranges: whether it knows them. `asked` counts the requests for each file.
    """

    drops: int = 0
    ranges: bool = True
    lies: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)


@contextmanager
def serve(folder: Path, behaviour: Behaviour | None = None) -> Iterator[str]:
    """The url of a server of `folder`."""
    how = behaviour or Behaviour()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            name = unquote(self.path).lstrip("/")
            how.asked[name] += 1
            path = folder / name
            if name in how.refused or not path.is_file():
                self.send_response(how.refused.get(name, 404))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = how.lies.get(name, path.read_bytes())
            status, first, last = 200, 0, len(data) - 1
            wanted = self.headers.get("Range", "")
            if how.ranges and wanted.startswith("bytes="):
                start, _, end = wanted.removeprefix("bytes=").partition("-")
                status, first, last = 206, int(start), min(last, int(end) if end else last)
            part = data[first : last + 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(part)))
            if how.ranges:
                self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            if not body:
                return
            if how.asked[name] <= how.drops:
                self.wfile.write(part[: len(part) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            how.sent[name] += len(part)
            self.wfile.write(part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
