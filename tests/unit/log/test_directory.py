"""Whose directory it is: creation, refusal of what is not ours, and the lock."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from broker.log.directory import Directory
from broker.model.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


def refusal(path: Path) -> StorageError:
    """Return the error of acquiring a directory, which must have left it as it was."""
    before = listing(path)
    with pytest.raises(StorageError) as caught:
        Directory.acquire(path)
    assert listing(path) == before
    return caught.value


def listing(path: Path) -> list[tuple[str, bytes]]:
    if path.is_file():
        return [("", path.read_bytes())]
    return sorted((str(p.relative_to(path)), p.read_bytes() if p.is_file() else b"") for p in path.rglob("*"))


def test_a_missing_directory_is_created_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    directory = Directory.acquire(path)
    directory.release()
    for folder in (path, path / "journal"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in (path / "lock", path / "format"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (path / "format").read_text() == f"broker data 2\njournal {directory.journal_id.hex()}\n"


def test_an_empty_directory_becomes_ours_and_private(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir(mode=0o755)
    Directory.acquire(path).release()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_the_identity_stays(tmp_path: Path) -> None:
    first = Directory.acquire(tmp_path / "data")
    first.release()
    second = Directory.acquire(tmp_path / "data")
    second.release()
    assert len(first.journal_id) == 16
    assert first.journal_id == second.journal_id
    other = Directory.acquire(tmp_path / "other")
    other.release()
    assert other.journal_id != first.journal_id


@pytest.mark.parametrize("begun", [[], ["lock"], ["lock", "journal/"], ["lock", "journal/", "format.new"]])
def test_a_creation_that_was_cut_short_is_completed(tmp_path: Path, begun: list[str]) -> None:
    path = tmp_path / "data"
    path.mkdir()
    for name in begun:
        (path / name).mkdir() if name.endswith("/") else (path / name).write_bytes(b"half")
    directory = Directory.acquire(path)
    assert directory.journal_path.is_dir()
    directory.release()
    assert not (path / "format.new").exists()


def test_a_second_opener_is_told_the_owner(tmp_path: Path) -> None:
    directory = Directory.acquire(tmp_path)
    with pytest.raises(StorageError) as caught:
        Directory.acquire(tmp_path)
    assert caught.value.name == "STORAGE_IN_USE"
    assert f"process {os.getpid()} on " in caught.value.detail
    directory.release()
    directory.release()
    Directory.acquire(tmp_path).release()


def test_another_process_is_told_the_owner_and_takes_over_from_a_dead_one(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from broker.log.directory import Directory;"
        "held = Directory.acquire(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(StorageError) as caught:
            Directory.acquire(tmp_path)
        assert caught.value.name == "STORAGE_IN_USE"
        assert f"process {owner.pid} on " in caught.value.detail
        owner.kill()
    Directory.acquire(tmp_path).release()


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    directory = Directory.acquire(tmp_path)
    ready_read, ready_write = os.pipe()
    leave_read, leave_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(leave_write)
        os.write(ready_write, b"1")
        os.read(leave_read, 1)  # stays alive until the parent has tried
        os._exit(0)
    os.read(ready_read, 1)
    directory._forget()  # as if the parent had been killed: closed without an explicit unlock
    try:
        Directory.acquire(tmp_path).release()
    finally:
        for descriptor in (ready_read, ready_write, leave_read, leave_write):
            os.close(descriptor)
        os.waitpid(child, 0)


@pytest.mark.parametrize("name", ["notes.txt", "data.mdb", ".git/"])
def test_a_foreign_directory_is_refused_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("mine")
    error = refusal(tmp_path)
    assert error.name == "STORAGE_FORMAT"
    assert name.rstrip("/") in error.detail
    assert error.hint is not None


def test_a_journal_without_its_format_is_refused(tmp_path: Path) -> None:
    """The format is durable before the first segment is, so this is no creation that was cut short."""
    Directory.acquire(tmp_path).release()
    (tmp_path / "journal" / "0000000000000001.seg").write_bytes(b"")
    (tmp_path / "format").unlink()
    assert refusal(tmp_path).name == "STORAGE_FORMAT"


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert refusal(tmp_path / "file").name == "STORAGE_FORMAT"


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"broker data 3\njournal " + b"0" * 32 + b"\n", "STORAGE_FORMAT", "format 3, this version knows 2"),
        (b"broker data 10\n", "STORAGE_FORMAT", "format 10"),
        (b"", "STORAGE_FORMAT", "not a broker's format file"),
        (b"\xff\xfe\x00", "STORAGE_FORMAT", "not a broker's format file"),
        (b"broker data x\n", "STORAGE_FORMAT", "not a broker's format file"),
        (b"broker data 1\n", "STORAGE_CORRUPT", "identity"),
        (b"broker data 1\njournal xyz\n", "STORAGE_CORRUPT", "identity"),
        (b"broker data 1\njournal 00\n", "STORAGE_CORRUPT", "identity"),
    ],
)
def test_formats_that_are_not_ours(tmp_path: Path, content: bytes, name: str, says: str) -> None:
    (tmp_path / "format").write_bytes(content)
    error = refusal(tmp_path)
    assert error.name == name
    assert says in error.detail


def test_what_the_system_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = None
    with pytest.raises(StorageError) as caught:
        Directory.acquire(tmp_path / "file" / "data")
    error = caught.value
    assert error.name == "STORAGE_FAILED"
    assert str(tmp_path / "file" / "data") in error.detail
