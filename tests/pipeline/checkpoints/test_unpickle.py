"""Pickles read as data: what joblib, torch and numpy write comes back equal; what would run is refused."""

import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from pipeline.checkpoints.torch_files import module_tensors, read_torch, tensors_in
from pipeline.checkpoints.unpickle import Inert, read_joblib
from pipeline.errors import InputError
from tests.pipeline.checkpoints.hostile import PICKLES, WRAPPINGS, Payload


@pytest.mark.parametrize("wrapping", PICKLES)
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path: Path, wrapping: str) -> None:
    marker = tmp_path / "ran"
    PICKLES[wrapping](tmp_path / "evil.bin", Payload(marker))
    with pytest.raises(InputError, match="asks for posix.system, which no checkpoint needs.*Nothing was run"):
        read_joblib(tmp_path / "evil.bin")
    assert not marker.exists()


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_hostile_torch_file_is_refused_and_nothing_runs(tmp_path: Path, wrapping: str) -> None:
    marker = tmp_path / "ran"
    WRAPPINGS[wrapping](tmp_path / "evil.ckpt", Payload(marker))
    with pytest.raises(InputError, match="asks for posix.system"):
        read_torch(tmp_path / "evil.ckpt")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (b"cbuiltins\neval\n", b"V__import__('os')\n"),
        (b"c__builtin__\ngetattr\n", b"Vx\n"),
        (b"cbuiltins\n__import__\n", b"Vos\n"),
        (b"cimportlib\nimport_module\n", b"Vos\n"),
        (b"cbuiltins\nopen\n", b"V/tmp/x\n"),
        (b"crunpy\n_run_code\n", b"Vx\n"),
        (b"cwebbrowser\nopen\n", b"Vx\n"),
        (b"csubprocess\nPopen\n", b"Vx\n"),
    ],
)
def test_every_way_to_code_is_refused_by_name(tmp_path: Path, name: bytes, argument: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(name + b"(" + argument + b"tR.")
    with pytest.raises(InputError, match="Nothing was run"):
        read_joblib(tmp_path / "x.pkl")


def test_names_of_known_packages_become_objects_without_code(tmp_path: Path) -> None:
    # torch, numpy and fairseq hold functions that run strings; here they are names only.
    for name in (b"ctorch.hub\nload\n", b"cnumpy.testing\nrundocs\n", b"cjoblib._utils\neval_expr\n"):
        (tmp_path / "x.pkl").write_bytes(name + b"(Vimport os\ntR.")
        found = read_joblib(tmp_path / "x.pkl")
        assert isinstance(found, Inert) and found.args == ("import os",)


def test_attributes_cannot_be_given_to_our_own_functions(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"c_codecs\nencode\n}V__defaults__\nVx\nsb.")
    with pytest.raises(InputError, match="attributes to what has none"):
        read_joblib(tmp_path / "x.pkl")


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_joblib_files_come_back_equal(tmp_path: Path, compress, protocol: int) -> None:
    rng = np.random.default_rng(0)
    value = {
        "double": rng.normal(size=(5, 3)),
        "fortran": np.asfortranarray(rng.normal(size=(4, 6)).astype(np.float32)),
        "list": [np.arange(7), "text", None, 2.5, True, (1, 2)],
        "scalar": np.float64(3.5),
        "empty": np.zeros((0, 4)),
        "big": np.arange(5, dtype=">i4"),
    }
    joblib.dump(value, tmp_path / "x.bin", compress=compress, protocol=protocol)
    found = read_joblib(tmp_path / "x.bin")
    for name in ("double", "fortran", "empty", "big"):
        np.testing.assert_array_equal(found[name], value[name])
        assert found[name].shape == value[name].shape
    np.testing.assert_array_equal(found["list"][0], np.arange(7))
    assert found["list"][1:] == ["text", None, 2.5, True, (1, 2)] and found["scalar"] == 3.5


def test_an_estimators_arrays_without_its_class(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    estimator = MiniBatchKMeans(8, random_state=0, n_init=1).fit(data)
    for write in (joblib.dump, lambda value, path: Path(path).write_bytes(pickle.dumps(value))):
        write(estimator, tmp_path / "km.bin")
        found = read_joblib(tmp_path / "km.bin")
        assert isinstance(found, Inert) and found.path.startswith("sklearn.cluster")
        np.testing.assert_array_equal(found.fields["cluster_centers_"], estimator.cluster_centers_)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_come_back_equal(tmp_path: Path, legacy: bool) -> None:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    value = OrderedDict(
        plain=base,
        view=base.t()[1:3],
        half=torch.randn(3).half(),
        brain=torch.tensor([1.5, -2.25]).bfloat16(),
        whole=torch.arange(5),
        mask=torch.tensor([True, False]),
        scalar=torch.tensor(7.0),
        none=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
        facts={"step": 3, "names": ["a", "b"]},
    )
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    found = read_torch(tmp_path / "x.pt")
    for name in value:
        if name != "facts":
            np.testing.assert_array_equal(found[name], value[name].detach().float().numpy().astype(found[name].dtype))
            assert found[name].shape == tuple(value[name].shape)
    assert found["facts"] == {"step": 3, "names": ["a", "b"]}
    assert set(tensors_in(found)) == set(value) - {"facts"}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_gives_its_tensors(tmp_path: Path, legacy: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module, tmp_path / "m.ckpt", _use_new_zipfile_serialization=not legacy)
    found = module_tensors(read_torch(tmp_path / "m.ckpt"))
    expected = module.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


def test_torch_saved_numpy_arrays(tmp_path: Path) -> None:
    units = np.array([3, 3, 199, 0])
    torch.save(units, tmp_path / "x.unit")
    np.testing.assert_array_equal(read_torch(tmp_path / "x.unit"), units)


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(InputError, match="no such file"):
        read_torch(path)
    path.write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(InputError, match="not a file of torch.save.*download complete"):
        read_torch(path)
    torch.save({"a": torch.randn(500)}, path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match="broken archive"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(InputError, match="no data.pkl"):
        read_torch(path)
    joblib.dump(np.zeros((3, 4)), tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:-40])
    with pytest.raises(InputError, match="ends in the middle of an array|not a readable pickle"):
        read_joblib(tmp_path / "x.bin")


def test_sizes_that_lie_are_refused(tmp_path: Path) -> None:
    """A tensor larger than its storage, and an archive that would unpack to more than it is."""
    torch.save({"a": torch.zeros(4)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(member for member in members if member.endswith("data.pkl"))
    size = next(op for op in pickletools.genops(members[name]) if op[0].name == "TUPLE1")
    assert size is not None
    changed = members[name].replace(b"K\x04\x85", b"J" + struct.pack("<i", 10**9) + b"\x85", 1)
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for member, data in members.items():
            archive.writestr(member, changed if member == name else data)
    with pytest.raises(InputError, match="does not fit its storage"):
        read_torch(tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    with pytest.raises(InputError, match="compressed or too large"):
        read_torch(tmp_path / "z.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "joblib", "compressed"])
def test_damaged_files_end_in_a_message(tmp_path: Path, kind: str) -> None:
    """Cut at random and with random bytes: read, or refused with the file's name; never another exception."""
    path = tmp_path / "x"
    if kind in ("zip", "legacy"):
        value = {"state_dict": {"a": torch.randn(3, 4), "b": torch.arange(5)}, "n": [1, "x", None]}
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
        read = read_torch
    else:
        estimator = MiniBatchKMeans(3, n_init=1).fit(np.random.default_rng(0).random((30, 4)))
        joblib.dump(estimator, path, compress=3 if kind == "compressed" else 0)
        read = read_joblib
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for number in range(150):
        data = bytearray(whole[: rng.integers(1, len(whole))] if number % 3 == 0 else whole)
        for _ in range(int(rng.integers(1, 6))):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            read(path)
        except InputError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 50
