"""The command that measures archiving, at a tiny size: every record is found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.macro import archive

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_every_record_is_archived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--channels", "40", "--records", "6000", "--segment-mib", "1", "--slice-segments", "1"]
    assert archive.main([*arguments, "--folder", str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][-2:] == ["archive", "rebuilt"]


def test_a_missing_record_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "count_records", lambda path: 0)
    arguments = ["--channels", "2", "--records", "100", "--segment-mib", "1", "--slice-segments", "1"]
    assert archive.main([*arguments, "--folder", str(tmp_path)]) == 1
