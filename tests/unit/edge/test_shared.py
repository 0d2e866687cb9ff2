"""What a server does that nobody looks after: when it is idle, and how its log stays within a bound."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.edge.shared import bound_log, is_missing, until_idle_s

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("now_s", "left_s", "connections", "left"),
    [(10.0, 10.0, 0, 3.0), (12.0, 10.0, 0, 1.0), (13.0, 10.0, 0, 0.0), (20.0, 10.0, 0, -7.0), (99.0, 10.0, 1, 3.0)],
)
def test_idle_is_counted_from_the_last_connection(now_s: float, left_s: float, connections: int, left: float) -> None:
    assert until_idle_s(now_s, left_s, connections, 3.0) == left


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    yield descriptor
    os.close(descriptor)


def test_a_log_is_cut_to_its_newest_whole_lines(log: int, tmp_path: Path) -> None:
    lines = b"".join(b"line %03d\n" % number for number in range(100))
    os.write(log, lines)
    assert not bound_log(log, len(lines), 50)
    os.write(log, b"one more\n")
    assert bound_log(log, len(lines), 50)
    os.write(log, b"and on\n")
    assert (tmp_path / "log").read_bytes() == b"line 096\nline 097\nline 098\nline 099\none more\nand on\n"


def test_what_is_no_log_of_ours_is_left_alone(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"x" * 100)
        assert not bound_log(write, 10, 5)
    finally:
        os.close(read)
        os.close(write)
    assert not bound_log(write, 10, 5), "nor what is closed"


def test_missing_is_what_the_system_says_is_missing(tmp_path: Path) -> None:
    assert is_missing(tmp_path / "nothing")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert not is_missing(tmp_path / "dangling")
    assert not is_missing(tmp_path)
    (tmp_path / "file").touch()
    assert not is_missing(Path(tmp_path, "file", "below")), "the system does not say"
