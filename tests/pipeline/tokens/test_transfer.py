"""pull and push: parallel, resumable, verified; with a server that breaks off, lies and refuses."""

import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.errors import InputError
from pipeline.tokens import remote, transfer
from pipeline.tokens.read import read_samples
from pipeline.tokens.verify import verify
from stages.tools.tokens import command
from tests.http_server import Behaviour, serve
from tests.pipeline.tokens.making import write_set

SIZES = {"train": [5, 4, 3], "val": [2]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("source") / "set", SIZES)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_pulled_set_is_the_same_to_the_byte(source, tmp_path):
    with serve(source) as url:
        done = transfer.pull(url, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(source) and verify(tmp_path / "copy") == []
    assert done.splits == ["train", "val"] and done.num_copied == done.num_files


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_connections_that_break_off_are_taken_up_again(source, tmp_path, ranges):
    how = Behaviour(drops=3, ranges=ranges)
    with serve(source, how) as url:
        transfer.pull(url, tmp_path / "copy", num_workers=4)
    assert tree(tmp_path / "copy") == tree(source)
    assert how.asked["train/00000.tar"] >= 4


def test_a_second_pull_goes_on_from_what_is_there(source, tmp_path):
    copy = tmp_path / "copy"
    how = Behaviour(refused={"train/00001.tar": 503})
    with serve(source, how) as url:
        with pytest.raises(InputError, match=r"train/00001\.tar: cannot be had after 3 attempts.*go on"):
            transfer.pull(url, copy, retries=2)
        assert not list(copy.rglob("index.json")) and not (copy / "contents.json").exists()
        assert (copy / "train" / "00000.tar").is_file()
        whole = (source / "train" / "00001.tar").read_bytes()
        sha256 = transfer.sha256_file(source / "train" / "00001.tar")
        (copy / "train" / f".00001.tar.{sha256[:12]}.part").write_bytes(whole[:7000])  # as a killed pull leaves it
        how.refused.clear()
        how.asked.clear()
        how.sent.clear()
        done = transfer.pull(url, copy)
    assert tree(copy) == tree(source) and done.num_copied == 1
    assert how.asked["train/00000.tar"] == 0 and how.sent["train/00001.tar"] == len(whole) - 7000


def test_a_server_that_lies_is_found_out(source, tmp_path):
    name = "train/00002.tar"
    data = bytearray((source / name).read_bytes())
    data[600] ^= 1
    with (
        serve(source, Behaviour(lies={name: bytes(data)})) as url,
        pytest.raises(InputError, match=r"train/00002\.tar: its SHA-256 is .* the index says"),
    ):
        transfer.pull(url, tmp_path / "a")
    assert not (tmp_path / "a" / name).exists() and not list((tmp_path / "a").rglob("*.part"))
    with (
        serve(source, Behaviour(lies={name: bytes(data[:-512])})) as url,
        pytest.raises(InputError, match="bytes came for the"),
    ):
        transfer.pull(url, tmp_path / "b")
    other = (source / "train" / "index.json").read_bytes().replace(b'"nsamples": 5', b'"nsamples": 6')
    with (
        serve(source, Behaviour(lies={"train/index.json": other})) as url,
        pytest.raises(InputError, match=r"train/index\.json: its SHA-256"),
    ):
        transfer.pull(url, tmp_path / "c")


def test_urls_that_lead_out_of_the_folder_are_refused(source, tmp_path):
    for url in ("../../x", "/etc/x", "a\\\\..\\\\x", "c:x", ""):
        text = (source / "contents.json").read_text().replace('"url": "statistics.json"', f'"url": "{url}"')
        with (
            serve(source, Behaviour(lies={"contents.json": text.encode()})) as address,
            pytest.raises(InputError, match="leads out of its folder"),
        ):
            transfer.pull(address, tmp_path / "copy")


def test_what_is_missing_or_forbidden_is_said_at_once(source, tmp_path):
    how = Behaviour(refused={"train/00001.tar": 404, "val/00000.tar": 403})
    with serve(source, how) as url, pytest.raises(InputError) as caught:
        transfer.pull(url, tmp_path / "copy")
    assert "train/00001.tar: the index lists it, but it is not there" in str(caught.value)
    assert "val/00000.tar: cannot be had (" in str(caught.value) and how.asked["val/00000.tar"] == 1
    with serve(tmp_path) as url, pytest.raises(InputError, match=r"no contents\.json and no README\.md"):
        transfer.pull(url, tmp_path / "nothing")


def test_one_split_another_set_and_a_wrong_fingerprint(source, tmp_path):
    copy = tmp_path / "copy"
    with serve(source) as url:
        transfer.pull(url, copy, splits=["val"])
        assert verify(copy) == [] and not (copy / "train").exists()
        with pytest.raises(InputError, match="no split 'test'; it has train, val"):
            transfer.pull(url, copy, splits=["test"])
        with pytest.raises(InputError, match="expected set 0123"):
            transfer.pull(url, copy, fingerprint="0123")
    other = write_set(tmp_path / "other", {"val": [3]})
    with pytest.raises(InputError, match="is of another set; give another folder, or --replace"):
        transfer.pull(str(other), copy)
    transfer.pull(str(other), copy, replace=True)
    assert len(list(read_samples(copy, "val"))) == 3


def test_a_set_without_contents_is_pulled_by_its_card(source, tmp_path):
    old = tmp_path / "old"
    for name, data in tree(source).items():
        if name.split("/")[0] in ("train", "val", "README.md"):
            (old / name).parent.mkdir(parents=True, exist_ok=True)
            (old / name).write_bytes(data)
    with serve(old) as url:
        transfer.pull(url, tmp_path / "copy")
    assert verify(tmp_path / "copy") == [] and len(list(read_samples(tmp_path / "copy", "train"))) == 12


def test_two_pulls_at_once_do_not_spoil_each_other(source, tmp_path):
    with serve(source) as url:
        threads = [threading.Thread(target=transfer.pull, args=(url, tmp_path / f"{n}")) for n in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert tree(tmp_path / "0") == tree(tmp_path / "1") == tree(source)


def test_a_second_pull_into_the_same_folder_is_refused(source, tmp_path):
    copy = tmp_path / "copy"
    with transfer._locked(copy), pytest.raises(InputError, match="another pull is at work"):
        transfer.pull(str(source), copy)
    transfer.pull(str(source), copy)
    assert tree(copy) == tree(source)


def test_the_commands_push_and_pull(source, tmp_path):
    run = CliRunner().invoke
    pushed = run(command, ["push", str(source), str(tmp_path / "there")])
    assert pushed.exit_code == 0 and tree(tmp_path / "there") == tree(source)
    assert "0 of them copied now" in run(command, ["push", str(source), str(tmp_path / "there")]).stdout
    with serve(tmp_path / "there") as url:
        pulled = run(command, ["pull", url, str(tmp_path / "here")])
    assert pulled.exit_code == 0 and tree(tmp_path / "here") == tree(source)
    (tmp_path / "there" / "val" / "00000.tar").write_bytes(b"gone")
    refused = run(command, ["push", str(tmp_path / "there"), str(tmp_path / "elsewhere")])
    assert isinstance(refused.exception, InputError) and "val/00000.tar" in str(refused.exception)
    assert "hf upload me/set" in str(run(command, ["push", str(source), "hf://datasets/me/set"]).exception)


def test_info_of_a_url_fetches_no_shards(source):
    how = Behaviour()
    with serve(source, how) as url:
        said = CliRunner().invoke(command, ["info", url])
    assert said.exit_code == 0 and "12 samples" in said.stdout and "perplexity" in said.stdout
    assert not [name for name in how.asked if name.endswith(".tar")]
    assert said.stdout == CliRunner().invoke(command, ["info", str(source)]).stdout


def test_any_file_system_of_fsspec_will_do(source, tmp_path):
    import fsspec

    transfer.push(source, "memory://sets/one")
    assert fsspec.filesystem("memory").exists("/sets/one/train/index.json")
    transfer.pull("memory://sets/one", tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(source)


def test_a_missing_package_is_named(tmp_path):
    pytest.importorskip("fsspec")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="pip install s3fs"):
            transfer.pull("s3://bucket/set", tmp_path)
