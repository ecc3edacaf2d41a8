"""Work for the runner's tests, in a module of its own so that worker processes can import it."""

import time
from pathlib import Path

from pipeline.manifest import Reject
from pipeline.runner import ShardResult


def number_file(log: Path, fail_at: str | None, seconds: float, name: str, path: Path) -> ShardResult:
    """Write the shard's own name, note in `log` that it was made, reject one item of every third shard."""
    path.write_text(name)
    if name == fail_at:
        raise RuntimeError("the disk is gone")
    time.sleep(seconds)
    with log.open("a") as lines:
        lines.write(f"{name}\n")
    number = int(name.split("/")[1])
    rejects = [Reject(name, "", "test", f"too short: {number} samples")] if number % 3 == 0 else []
    return ShardResult({"items": 2 - len(rejects)}, rejects, {"number": number})
