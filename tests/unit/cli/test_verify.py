"""`broker verify`: rows for people, pipes and programs, and a status that scripts can go by."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from broker.cli.main import main
from tests.reference.chains import EPOCH, Chain
from tests.reference.groups import channel_entry, epoch_entry
from tests.unit.log.support import opened, segment_files

if TYPE_CHECKING:
    from pathlib import Path

PAYLOAD = b"payload " * 100


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    with opened(path) as one:
        chain = Chain()
        one.append(chain, [(1, [PAYLOAD])], [channel_entry(1, "c.one"), epoch_entry(1, EPOCH, 1)])
        one.append(chain, [(1, [b"second"])])
    return path


def damage(data: Path) -> None:
    path = segment_files(data)[0]
    # Pages that are not used any more hold copies of it.
    path.write_bytes(path.read_bytes().replace(PAYLOAD, PAYLOAD.upper()))


def test_good_data_is_one_line_and_status_0(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(data)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("good: ")
    assert "2 groups, 2 chunks, 2 messages up to group 2" in out
    assert err == ""


def test_pipe_gets_one_line_a_fault_and_status_1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(data)
    assert main(["verify", str(data)]) == 1
    lines = capsys.readouterr().out.splitlines()
    where, what, cost = lines[0].split("\t")
    assert where.startswith("journal/0000000000000001.seg, offset ")
    assert "group 1" in where
    assert what == "chunk checksum is wrong"
    assert "lost" in cost
    assert lines[-1].startswith(f"{len(lines) - 1} faults in ")


def test_terminal_gets_a_table(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    damage(data)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["verify", str(data), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "what it costs" in out
    assert "chunk checksum is wrong" in out


def test_json_has_every_field(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(data)
    assert main(["verify", str(data), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["sound"] is False
    fault = found["faults"][0]
    assert fault["file"] == "journal/0000000000000001.seg"
    assert fault["group"] == 1
    assert set(fault) == {"file", "what", "cost", "offset", "group", "channel", "epoch", "first", "last", "mendable"}


def test_what_cannot_be_looked_at_is_status_6(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(data):
        assert main(["verify", str(data)]) == 6
    assert "STORAGE_IN_USE" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    assert main(["verify", str(tmp_path / "other")]) == 6
    assert main(["verify", str(tmp_path / "none")]) == 2
