"""The facade: its states, forked children, permissions, and its statistics."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from broker.log import Log
from broker.model.errors import BrokerError, StorageError
from tests.reference.chains import Chain
from tests.unit.log.support import opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPERATIONS: dict[str, Callable[[Log], object]] = {
    "append": lambda log: log.append(1, Chain().build()),
    "abandon": lambda log: log.abandon(),
    "read_channel": lambda log: log.read_channel(1, 0, 1),
    "read_groups": lambda log: log.read_groups(0, 0, 1, None),
    "time_to_group": lambda log: log.time_to_group(0),
    "stats": lambda log: log.stats(),
    "last_group": lambda log: log.last_group,
    "wait_sealed": lambda log: log.wait_sealed(0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_states(tmp_path: Path, name: str) -> None:
    log = Log.open(tmp_path, reserve_bytes=0)
    with pytest.raises(BrokerError) as caught:
        OPERATIONS[name](log)
    assert caught.value.name == "UNAVAILABLE"
    log.recover()
    OPERATIONS[name](log)
    log.close()
    log.close()
    with pytest.raises(BrokerError) as caught:
        OPERATIONS[name](log)
    assert caught.value.name == "CLOSED"


def test_a_forked_child_is_refused_and_the_parent_goes_on(tmp_path: Path) -> None:
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 5)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            names = []
            for operation in OPERATIONS.values():
                try:
                    operation(one.log)
                    names.append("nothing")
                except BrokerError as error:
                    names.append(error.name)
            one.log.close()  # must not touch what belongs to the parent
            os.write(write, ",".join(names).encode())
            os._exit(0)
        os.close(write)
        answer = os.read(read, 4096).decode().split(",")
        os.close(read)
        os.waitpid(child, 0)
        assert answer == ["FORKED"] * len(OPERATIONS)
        one.fill(chain, 100)
        assert one.all_groups() == chain.bus()


def test_a_second_opener_in_this_process(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StorageError) as caught:
        Log.open(tmp_path)
    assert caught.value.name == "STORAGE_IN_USE"


def test_everything_is_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        with opened(tmp_path / "data") as one:
            one.fill(Chain(), 120)
            assert one.log.wait_sealed(10)
            modes = {
                path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]
            }
    finally:
        os.umask(previous)
    assert len(modes) > 6
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items())


def test_statistics(tmp_path: Path) -> None:
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 120)
        assert one.log.wait_sealed(10)
        stats = one.log.stats()
        assert stats["commits"] == 120
        assert stats["bytes"] == sum(map(len, chain.values.values()))
        assert stats["segments"] == stats["sealed"] + 1 == stats["seals"] + 1
        assert stats["seal_backlog"] == 0
        # Two a commit, three a seal, two a segment made ready: the one that is ready now may not be counted yet.
        made = 2 * stats["segments"]
        assert stats["fsyncs"] - 240 - 3 * stats["seals"] in (made, made - 2)


def test_the_identity_is_the_directory_s(tmp_path: Path) -> None:
    with opened(tmp_path) as one:
        assert (tmp_path / "format").read_text().endswith(f"journal {one.log.journal_id.hex()}\n")
