"""Pickles that try to run something, in every wrapping that the importers open."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import joblib


class Payload:
    """Unpickled for real, this makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def as_zip(path: Path, payload: object) -> None:
    """In the archive format of torch.save."""
    stream = io.BytesIO()
    pickle.dump({"state_dict": payload, "model": payload, "generator": payload}, stream, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/version", "3\n")


def as_legacy(path: Path, payload: object) -> None:
    """In the stream format that torch.save had before 1.6."""
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"state_dict": payload}, []):
            pickle.dump(part, file, protocol=2)


def as_joblib(path: Path, payload: object) -> None:
    joblib.dump({"cluster_centers_": payload}, path)


def as_compressed(path: Path, payload: object) -> None:
    joblib.dump({"cluster_centers_": payload}, path, compress=("gzip", 3))


def as_protocol_0(path: Path, payload: object) -> None:
    path.write_bytes(pickle.dumps(payload, protocol=0))


WRAPPINGS = {"zip": as_zip, "legacy": as_legacy}
PICKLES = {"joblib": as_joblib, "gzip": as_compressed, "protocol 0": as_protocol_0}
