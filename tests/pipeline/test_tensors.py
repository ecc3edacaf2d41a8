"""safetensors files are the same bytes in every process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from pipeline.tensors import write_safetensors

SCRIPT = """
import sys; from pathlib import Path; import numpy as np
from pipeline.tensors import write_safetensors
write_safetensors(Path(sys.argv[1]), {"b": np.ones((2, 3), np.float32), "a": np.arange(5)},
                  {name: "é" * 3 for name in "zyxwvu"})
"""


def test_equal_content_gives_equal_bytes_in_any_process(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for number in range(3):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / f"{number}.safetensors")]
        subprocess.run(command, check=True, cwd=root)
    first = (tmp_path / "0.safetensors").read_bytes()
    assert all((tmp_path / f"{number}.safetensors").read_bytes() == first for number in (1, 2))


def test_the_stock_reader_reads_it_back(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write_safetensors(tmp_path / "x.safetensors", {"array": array}, {"who": "flute", "a": "é"})
    with safe_open(tmp_path / "x.safetensors", framework="np") as stored:
        assert stored.metadata() == {"who": "flute", "a": "é"}
        np.testing.assert_array_equal(stored.get_tensor("array"), array)


def test_a_scalar_stays_a_scalar(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"count": np.array(3)})
    assert load_file(tmp_path / "x.safetensors")["count"].shape == ()
