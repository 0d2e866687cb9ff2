"""What errors of LMDB and of the system are called."""

from __future__ import annotations

import copy
import errno
import pickle
from typing import TYPE_CHECKING

import lmdb
import pytest

from broker.log import AppendError, AppendFull, errors
from broker.model.errors import StorageFull
from broker_native.index import GroupDamaged

if TYPE_CHECKING:
    from pathlib import Path


def lmdb_error(code: int) -> lmdb.Error:
    cause = lmdb.Error("mdb_txn_commit")
    cause.code = code  # type: ignore[misc]
    return cause


@pytest.mark.parametrize(
    "cause",
    [
        lmdb.MapFullError("mdb_put"),
        lmdb.DiskError("mdb_put"),
        lmdb_error(errno.ENOSPC),
        lmdb_error(errno.EDQUOT),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EFBIG, "too big"),
    ],
)
@pytest.mark.parametrize("handed_over", [False, True])
def test_full_by_its_own_name(tmp_path: Path, cause: Exception, handed_over: bool) -> None:
    found = errors.append_error(cause, tmp_path / "x.seg", 0, handed_over=handed_over)
    assert isinstance(found, AppendFull)
    assert isinstance(found, StorageFull)
    assert (found.name, found.handed_over) == ("STORAGE_FULL", handed_over)
    assert errors.failed(tmp_path, cause).name == "STORAGE_FULL"


@pytest.mark.parametrize("cause", [lmdb_error(errno.EIO), lmdb.PanicError("mdb_txn_begin"), OSError(errno.EIO, "io")])
def test_other_causes_ask_the_file_system(tmp_path: Path, cause: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    found = errors.append_error(cause, tmp_path / "x.seg", 1, handed_over=True)
    assert type(found) is AppendError
    assert (found.name, found.handed_over) == ("STORAGE_FAILED", True)
    monkeypatch.setattr(errors, "free_bytes", lambda _: 0)
    found = errors.append_error(cause, tmp_path / "x.seg", 1, handed_over=True)
    assert isinstance(found, AppendFull)
    assert str(cause) in found.detail


def test_a_write_that_was_cut_short_on_a_full_disk_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB's first failing commit says EIO."""
    cause = lmdb_error(errno.EIO)
    assert errors.failed(tmp_path / "x", cause).name == "STORAGE_FAILED"
    monkeypatch.setattr(errors, "free_bytes", lambda _: 4096)
    assert errors.failed(tmp_path / "x", cause).name == "STORAGE_FULL"
    assert errors.failed(tmp_path / "x", lmdb.CorruptedError("mdb_get")).name == "STORAGE_FAILED"


def test_handed_over_survives_copies() -> None:
    original = errors.append_full("full", handed_over=True)
    for twin in (copy.copy(original), pickle.loads(pickle.dumps(original))):
        assert isinstance(twin, AppendFull)
        assert twin.handed_over


def test_free_bytes_of_nothing_is_none(tmp_path: Path) -> None:
    assert errors.free_bytes(tmp_path) > 0
    assert errors.free_bytes(tmp_path / "missing") == 0


def test_damage_names_file_group_channel_and_offset(tmp_path: Path) -> None:
    found = errors.damaged(tmp_path / "a.seg", 17, GroupDamaged("chunk checksum", 4096, 42))
    assert found.name == "STORAGE_CORRUPT"
    assert found.detail == f"{tmp_path / 'a.seg'}: chunk checksum is wrong: group 17, offset 4096, channel 42"
    for reason in ("format", "unknown entry"):
        found = errors.damaged(tmp_path / "a.seg", 17, GroupDamaged(reason, 4, 0))
        assert found.name == "STORAGE_FORMAT"
        assert found.hint is not None
