"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from broker.log import durable

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_written_whole_and_private(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "file", b"first")
    durable.write_file(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"second"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.write_file(tmp_path / "file", b"first")

    def refuse(descriptor: int) -> None:
        raise OSError("the disk refuses")

    monkeypatch.setattr(durable, "sync_descriptor", refuse)
    with pytest.raises(OSError, match="refuses"):
        durable.write_file(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_the_order_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are synced before the name is given, and the folder after it."""
    steps: list[str] = []
    sync = durable.sync_descriptor

    def record(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        steps.append(",".join(sorted(os.listdir(tmp_path))))
        sync(descriptor)

    monkeypatch.setattr(durable, "sync_descriptor", record)
    durable.write_file(tmp_path / "file", b"content")
    assert steps == ["file", "file.new", "folder", "file"]


def test_make_folder_is_private(tmp_path: Path) -> None:
    durable.make_folder(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700
