"""Where a shared directory's socket is: in the directory, or where a name that fits an address can be had."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.config import UNIX_PATH_BYTES_MAX
from broker.model.errors import BrokerError
from broker.shared.place import Peer, Place, make_private, peer_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short name, in which sockets outside of their directories go as well."""
    with tempfile.TemporaryDirectory(prefix="broker-") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(Path(name).resolve()))
        yield Path(name).resolve()


def long_by(folder: Path, spare: int) -> Path:
    """Return a directory whose socket's path has so many bytes to spare."""
    rest = UNIX_PATH_BYTES_MAX - spare - len(str(folder)) - len("//broker.sock")
    return folder / ("é" * (rest // 2) + "x" * (rest % 2))


@pytest.mark.parametrize("spare", [0, 1, 5])
def test_a_path_that_fits_is_in_the_directory(folder: Path, spare: int) -> None:
    path = long_by(folder, spare)
    assert Place(path).find() == Place(path).prepare() == f"{path}/broker.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        path.mkdir()
        sock.bind(Place(path).find())


def test_one_byte_more_is_elsewhere_and_the_directory_has_a_link(folder: Path) -> None:
    path = long_by(folder, -1)
    path.mkdir()
    elsewhere = Place(path).find()
    assert Path(elsewhere).parent == folder / f"broker-{os.geteuid()}"
    assert not Path(elsewhere).parent.exists(), "to look creates nothing"
    assert Place(path).prepare() == elsewhere
    assert os.readlink(path / "broker.sock") == elsewhere
    assert Place(long_by(folder, -2)).find() != elsewhere


def test_openers_follow_the_link_wherever_they_would_have_put_the_socket(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = long_by(folder, -1)
    path.mkdir()
    prepared = Place(path).prepare()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    (folder / "short").symlink_to(path)
    for name in (path, folder / "short", os.path.relpath(path)):
        assert Place(name).find() == prepared


def test_a_link_that_leads_nowhere_useful_is_replaced(folder: Path) -> None:
    path = long_by(folder, -1)
    path.mkdir()
    (path / "broker.sock").symlink_to("x" * 200)
    assert Place(path).prepare() == os.readlink(path / "broker.sock") != "x" * 200


def test_without_any_short_folder_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.shared.place.UNIX_PATH_BYTES_MAX", 20)
    with pytest.raises(BrokerError, match=r"ADDRESS .*, limit 20 bytes, and no folder for temporary files"):
        Place(folder / "data").find()


def test_a_private_folder_is_private_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o777)
    try:
        make_private(folder / "ours")
    finally:
        os.umask(before)
    make_private(folder / "ours")
    assert (folder / "ours").stat().st_mode & 0o777 == 0o700


def test_who_listens_is_known() -> None:
    near, far = socket.socketpair()
    with near, far:
        assert peer_of(near) in (Peer(os.getpid(), os.geteuid()), Peer(None, os.geteuid()))
    assert peer_of(near) == Peer(None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue looks like nobody")
def test_nobody_and_a_crowd_at_the_door_are_told_apart(folder: Path) -> None:
    place = Place(folder)
    assert place.dial() is None
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place.find())
        assert place.dial() is None, "bound, and nobody listens"
        listening.listen(0)
        waiting = place.dial()
        assert waiting is not None
        with waiting, pytest.raises(BrokerError, match=r"TIMEOUT .* no more of them can wait"):
            place.dial()
