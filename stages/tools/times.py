"""im2speech times: how long each stage last took, from the logs."""

import json
from pathlib import Path

from stages._settings import from_environment


def command() -> None:
    """Print the seconds that each stage's last run took, and their sum."""
    total = 0.0
    rows = []
    for path in sorted(from_environment().logs_dir.glob("*.jsonl")):
        last = _last_done(path)
        if last is not None:
            rows.append(last)
            total += last["seconds"]
    for row in sorted(rows, key=lambda row: row["time"]):
        print(f"{row['stage']:<10} {row['seconds']:8.1f} s   finished {row['time']}")
    print(f"{'sum':<10} {total:8.1f} s")


def _last_done(path: Path) -> dict | None:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    done = [record for record in records if record.get("event") == "done"]
    return done[-1] if done else None
