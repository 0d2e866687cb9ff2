"""One LMDB file: creation, the check before it is mapped, opening and closing."""

from __future__ import annotations

import random
import stat
import struct
import threading
from typing import TYPE_CHECKING

import lmdb
import pytest

from broker.log import environment as module
from broker.log.environment import (
    LOOKS_MAX,
    EnvironmentFile,
    OpenFiles,
    _Meta,
    check_file,
    check_pages,
    create_file,
    lock_path,
    open_lmdb,
    reading_tree,
    remove_file,
)
from broker.log.pages import open_pages
from broker.model.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

MAP_BYTES = 16 * 1024 * 1024
PAGE_BYTES = 4096
META_PAGE_BYTES_AT = 40
META_LAST_PAGE_AT = 136
META_TRANSACTION_AT = 144


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with three commits."""
    path = tmp_path / "file.seg"
    create_file(path, MAP_BYTES)
    environment = open_lmdb(path, MAP_BYTES)
    for number in range(3):
        with environment.begin(write=True) as transaction:
            transaction.put(bytes([number]), bytes(10_000))
    environment.close()
    return path


def patch(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def check_error(path: Path) -> StorageError:
    with pytest.raises(StorageError) as caught:
        check_file(path)
    assert str(path) in caught.value.detail
    return caught.value


def test_created_files_are_private_and_pass(tmp_path: Path, path: Path) -> None:
    create_file(tmp_path / "fresh.seg", MAP_BYTES)
    check_file(tmp_path / "fresh.seg")
    check_file(path)
    assert {file.name for file in tmp_path.iterdir()} == {"fresh.seg", "file.seg", "file.seg-lock"}
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_full_sync_and_the_old_engine(path: Path) -> None:
    environment = open_lmdb(path, MAP_BYTES)
    flags = environment.flags()
    assert (flags["sync"], flags["metasync"], flags["writemap"]) == (True, True, False)
    assert environment.max_readers() >= 1024
    environment.close()
    assert struct.unpack_from("<I", path.read_bytes(), 20) == (1,)


def test_every_cut_is_found(path: Path) -> None:
    content = path.read_bytes()
    for size in [*range(0, 200), *range(200, len(content), 512), len(content) - 1]:
        path.write_bytes(content[:size])
        assert check_error(path).name == "STORAGE_CORRUPT"
    path.write_bytes(content)
    check_file(path)


@pytest.mark.parametrize("page", [0, 4096])
@pytest.mark.parametrize("at", [16, 17, META_PAGE_BYTES_AT, META_PAGE_BYTES_AT + 1, META_TRANSACTION_AT])
def test_damaged_meta_pages_are_found(path: Path, page: int, at: int) -> None:
    for bit in range(8):
        content = path.read_bytes()
        patch(path, page + at, bytes([content[page + at] ^ 1 << bit]))
        if at == META_TRANSACTION_AT and bit == 1 and not raises(path):
            # 2 and 3 become 0 and 3, or 2 and 1: the latter is what the file held one commit ago.
            assert page == 4096
        else:
            check_error(path)
        path.write_bytes(content)


def raises(path: Path) -> bool:
    try:
        check_file(path)
    except StorageError:
        return True
    return False


def test_a_file_with_the_inode_of_one_that_is_being_closed_is_opened(tmp_path: Path) -> None:
    """As archived segments are removed and the next one is made; the `lmdb` package forgets a file after its end."""
    failures: list[lmdb.Error] = []

    def make_and_remove(name: str) -> None:
        for number in range(100):
            path = tmp_path / f"{name}.{number}"
            try:
                create_file(path, 1 << 28)
                environment = open_lmdb(path, 1 << 28)
            except lmdb.Error as failure:
                failures.append(failure)
                return
            remove_file(path)
            environment.close()

    threads = [threading.Thread(target=make_and_remove, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_file_that_seems_to_be_open_is_opened_when_it_is_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, refused = lmdb.open, 0

    def refuse(*args: object, **options: object) -> lmdb.Environment:
        nonlocal refused
        refused += 1
        if refused <= 3:
            raise lmdb.Error(f"The environment '{path}' is already open in this process.")
        return opened(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(lmdb, "open", refuse)
    monkeypatch.setattr(module, "OPEN_PAUSE_S", 0.0)
    open_lmdb(path, MAP_BYTES).close()
    refused = -5_000
    with pytest.raises(lmdb.Error, match="already open"):
        open_lmdb(path, MAP_BYTES)
    assert refused == -5_000 + module.OPENS_MAX


@pytest.mark.parametrize("commits", [1, 2, 3])
@pytest.mark.parametrize("looks", [1, 3])
def test_commits_between_the_looks_at_a_file_are_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch, commits: int, looks: int
) -> None:
    """The child of a killed server may be in the middle of a commit when the next server opens the archive."""
    writer = open_lmdb(path, MAP_BYTES, locks=False)
    read = _Meta.read
    left = looks

    def read_and_commit(page: bytes) -> _Meta | None:
        nonlocal left
        if left:
            left -= 1
            for number in range(commits):
                with writer.begin(write=True) as transaction:
                    transaction.put(b"%d.%d" % (left, number), bytes(50_000))
        return read(page)

    monkeypatch.setattr(_Meta, "read", read_and_commit)
    check_file(path)
    assert left == 0
    writer.close()


def test_a_file_that_changes_at_each_look_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def read(page: bytes) -> _Meta | None:
        nonlocal looks
        looks += 1
        patch(path, META_TRANSACTION_AT, struct.pack("<Q", looks))
        return None

    monkeypatch.setattr(_Meta, "read", read)
    assert f"at {LOOKS_MAX} looks" in check_error(path).detail


def test_a_last_page_past_the_end_is_a_cut(path: Path) -> None:
    for page in (0, 4096):
        patch(path, page + META_LAST_PAGE_AT, struct.pack("<Q", 2**40))
    assert "cut" in check_error(path).detail


def test_another_lmdb_format_is_told(path: Path) -> None:
    for page in (0, 4096):
        patch(path, page + 20, struct.pack("<I", 3))
    error = check_error(path)
    assert error.name == "STORAGE_FORMAT"
    assert error.hint is not None


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    assert check_error(tmp_path / "none").name == "STORAGE_FAILED"


def environment_file(path: Path, *, readonly: bool = False, files: OpenFiles | None = None) -> EnvironmentFile:
    return EnvironmentFile(path, MAP_BYTES, readonly=readonly, open_files=files or OpenFiles(4))


def test_a_cut_file_is_an_error_and_not_a_signal(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(StorageError), environment_file(path).reading():
        pass


def test_reading_views(path: Path) -> None:
    file = environment_file(path)
    with file.reading() as transaction:
        value = transaction.get(b"\x01")
        assert isinstance(value, memoryview)
        assert value == bytes(10_000)
    file.close()


def test_errors_of_lmdb_become_storage_errors(path: Path) -> None:
    file = environment_file(path)
    with pytest.raises(StorageError) as caught, file.reading():
        raise lmdb.CorruptedError("page")
    assert caught.value.name == "STORAGE_CORRUPT"
    with pytest.raises(StorageError) as caught, file.reading():
        raise lmdb.Error("mdb_get", 5)
    assert caught.value.name == "STORAGE_FAILED"
    file.close()


def test_close_waits_for_readers(path: Path) -> None:
    file = environment_file(path)
    entered, leave, closed = threading.Event(), threading.Event(), threading.Event()

    def read() -> None:
        with file.reading() as transaction:
            entered.set()
            assert leave.wait(10)
            assert transaction.get(b"\x02") is not None

    def close() -> None:
        file.close()
        closed.set()

    threads = [threading.Thread(target=read), threading.Thread(target=close)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    assert not closed.wait(0.05)
    assert not file.close_if_idle()
    leave.set()
    for thread in threads:
        thread.join()
    assert closed.is_set()
    with file.reading() as transaction:
        assert transaction.get(b"\x02") is not None
    file.close()


def test_a_read_only_file_has_no_lock_file(path: Path) -> None:
    file = environment_file(path)
    file.open()
    assert lock_path(path).exists()
    file.close(readonly=True)
    assert not lock_path(path).exists()
    with file.reading() as transaction:
        assert transaction.get(b"\x00") is not None
    assert file.readonly
    assert not lock_path(path).exists()
    with file.writing() as environment, pytest.raises(lmdb.ReadonlyError):
        environment.begin(write=True)
    file.close()


def test_open_files_are_bounded(tmp_path: Path) -> None:
    files = OpenFiles(2)
    many = []
    for number in range(5):
        create_file(tmp_path / f"{number}.seg", MAP_BYTES)
        many.append(environment_file(tmp_path / f"{number}.seg", readonly=True, files=files))
    with many[0].reading():
        for file in many[1:]:
            with file.reading():
                pass
        assert [file._environment is not None for file in many] == [True, False, False, True, True]
    for _ in range(2):
        with many[4].reading():
            pass
    assert [file._environment is not None for file in many] == [False, False, False, True, True]
    for file in many:
        file.close()


def lacking(path: Path, seed: int) -> dict[bytes, bytes]:
    """Make a file until it lacks free pages at its end; returns its rows.

    A transaction that takes pages there and gives them back before it commits does not write them.
    """
    pick = random.Random(seed)
    rows: dict[bytes, bytes] = {}
    environment = open_lmdb(path, MAP_BYTES, locks=False)
    try:
        for _ in range(60):
            with environment.begin(write=True) as transaction:
                keys = [b"%03d" % pick.randrange(200) for _ in range(pick.randint(1, 40))]
                for key in keys:
                    rows[key] = bytes([pick.randrange(256)]) * pick.choice((10, 700, 1500, 5000))
                    transaction.put(key, rows[key])
                for key in pick.sample(keys, pick.randint(0, len(keys))):
                    transaction.delete(key)
                    rows.pop(key, None)
            if path.stat().st_size < (environment.info()["last_pgno"] + 1) * PAGE_BYTES:
                return rows
    finally:
        environment.close()
    raise AssertionError("no file that is short")


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_file_may_lack_free_pages_at_its_end(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "short"
    rows = lacking(path, seed)
    check_pages(path, writable=False)
    check_pages(path, writable=True)
    with reading_tree(path) as tree:
        assert dict(tree.range(b"", b"", 1 << 30, 1 << 30)) == rows
    told: list[str] = []
    with open_pages(path, lambda offset, what: told.append(what)) as pages:
        assert {row.key: row.value for row in pages.rows()} == rows
    assert told == []
    environment = open_lmdb(path, MAP_BYTES, locks=False)
    with environment.begin(write=True) as transaction:
        transaction.put(b"more", bytes(20_000))
    environment.close()
    check_pages(path, writable=True)


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_file_that_lacks_a_page_in_use_is_cut(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "short"
    rows = lacking(path, seed)
    refused = False
    while not refused:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - PAGE_BYTES)
        try:
            check_file(path)
        except StorageError as failure:
            refused = "is cut" in failure.detail
            assert refused
        else:
            with reading_tree(path) as tree:
                assert dict(tree.range(b"", b"", 1 << 30, 1 << 30)) == rows
