"""Where an imported model came from: kept beside it as `provenance.json`, without paths and clocks."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.files import sha256_file, write_json


@dataclass(frozen=True)
class Provenance:
    """`files`: name -> sha256 of every file read; `format`: what they were; `notes`: what was left out or assumed."""

    format: str
    files: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def metadata(self) -> dict[str, str]:
        """The same as text, for the header of a safetensors file."""
        listed = ", ".join(f"{name} sha256 {digest}" for name, digest in sorted(self.files.items()))
        return {"imported_format": self.format, "imported_from": listed}

    def save(self, folder: Path) -> None:
        """Write `provenance.json`."""
        values: dict[str, Any] = asdict(self)
        write_json(folder / "provenance.json", values)


def provenance(format: str, *files: Path, notes: tuple[str, ...] = ()) -> Provenance:
    """Hash the files that a model is made of."""
    return Provenance(format, {file.name: sha256_file(file) for file in files}, notes)
