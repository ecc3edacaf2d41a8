"""safetensors files whose bytes depend on their content alone. Needs no torch.

The safetensors library writes its metadata in an order that differs from process to process, which
would make equal models unequal to DVC; here the header is put in sorted order.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from pipeline.files import atomic_path


def write_safetensors(path: Path, tensors: Mapping[str, NDArray], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays and string metadata, atomically; equal content gives equal bytes."""
    # Reshaped, because numpy makes a row of one of a scalar here.
    arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(with_sorted_header(save(arrays, dict(metadata) if metadata else None)))


def with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its JSON header sorted, padded to 8 bytes as the format asks."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
