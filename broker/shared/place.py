"""Where the server of a shared directory listens, and who listens there.

The socket is `broker.sock` in the directory. Its path may be too long for a socket's address; then it lies in a folder
of this user's below the system's folder for such things, under a name that follows from the directory's real path, and
`broker.sock` is a link to it: openers need not agree on their environment.

A folder for temporary files is everybody's. So ours must be a real folder that belongs to us and is closed to others,
and whoever answers at a socket must run as we do: a stranger's socket is refused, not talked to.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from broker.config.listeners import UNIX_PATH_BYTES_MAX
from broker.model.errors import error

if TYPE_CHECKING:
    from broker.model.errors import BrokerError

__all__ = ["Peer", "Place"]

SOCKET_NAME = "broker.sock"
FOLDER_MODE = 0o700
_OTHERS = 0o077
_CREDENTIALS = struct.Struct("3i")
# macOS: getsockopt(2) at level SOL_LOCAL.
_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2


class Peer(NamedTuple):
    """Who listens at the other end of a socket; None for what the system does not say."""

    pid: int | None
    uid: int | None


class Place:
    """A shared directory.

    Args:
        path: as the caller names it; links in it are followed once, here.

    Attributes:
        path: the real path.
        own_socket: the socket's path in the directory, whether it fits an address or not.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.own_socket = self.path / SOCKET_NAME

    def __str__(self) -> str:
        return str(self.path)

    def check_owner(self) -> None:
        """Check that the directory, if it is there, is ours.

        Raises:
            BrokerError: ADDRESS; it belongs to another user, whose server we would talk to. STORAGE_FORMAT; it is no
                directory.
        """
        try:
            status = self.path.stat()
        except OSError:
            # Whoever has to create it meets the reason again, and says it.
            return
        if not stat.S_ISDIR(status.st_mode):
            raise error("STORAGE_FORMAT", f"{self}: is not a directory", "Name an empty or a new directory.")
        # Root is let in, as everywhere: in a container it is often the only user. Its server must be root's even so.
        if os.geteuid() not in (status.st_uid, 0):
            raise error(
                "ADDRESS",
                f"{self}: got a directory of user {status.st_uid}, expected one of this process's user, {os.geteuid()}",
                "Open it as that user: a shared directory is for the processes of one user.",
            )

    def find(self) -> str:
        """Return the path at which to look for the socket, which fits an address. Creates nothing.

        Raises:
            BrokerError: ADDRESS; the folder that it should be in is not private, or no path is short enough.
        """
        if fits(self.own_socket):
            return str(self.own_socket)
        with suppress(OSError):
            linked = Path(os.readlink(self.own_socket))
            if linked.is_absolute() and fits(linked):
                check_private(linked.parent)
                return str(linked)
        return str(self._outside())

    def prepare(self) -> str:
        """Return the path at which to listen; makes its folder, and the link to it, when it is outside. For a starter.

        Raises:
            BrokerError: as `find`.
            OSError: the system refuses.
        """
        if fits(self.own_socket):
            return str(self.own_socket)
        path = self._outside()
        make_private(path.parent)
        with suppress(FileNotFoundError):
            if os.readlink(self.own_socket) == str(path):
                return str(path)
            self.own_socket.unlink()
        os.symlink(path, self.own_socket)
        return str(path)

    def _outside(self) -> Path:
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16] + ".sock"
        roots = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]
        for root in roots:
            path = Path(root, f"broker-{os.geteuid()}", name)
            if os.path.isabs(root) and fits(path) and os.path.isdir(root):
                check_private(path.parent)
                return path
        raise error(
            "ADDRESS",
            f"{self.own_socket}: got a path of {len(os.fsencode(self.own_socket))} bytes, limit {UNIX_PATH_BYTES_MAX} "
            "bytes, and no folder for temporary files has a shorter one",
            "Give the directory a shorter path, or set XDG_RUNTIME_DIR to a short one.",
        )

    def dial(self) -> socket.socket | None:
        """Connect to whoever listens; None if nobody does.

        Returns:
            A connected socket that does not block; the caller's.

        Raises:
            BrokerError: ADDRESS; a stranger listens there, or the system refuses. TIMEOUT; somebody listens who has
                taken no connection for so long that no more can wait.
        """
        path = self.find()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(path)
            self._check_peer(path, peer_of(sock))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        except BlockingIOError:
            sock.close()
            raise error(
                "TIMEOUT",
                f"{path}: whoever listens there takes no connections, and no more of them can wait",
                "See in server.json of the directory which process it is, and whether it is stopped or stuck.",
            ) from None
        except OSError as failure:
            sock.close()
            raise self._refused(path, failure) from failure
        except BaseException:
            sock.close()
            raise
        return sock

    @staticmethod
    def _check_peer(path: str, peer: Peer) -> None:
        if peer.uid is not None and peer.uid != os.geteuid():
            raise error(
                "ADDRESS",
                f"{path}: got a server of user {peer.uid}, expected one of this process's user, {os.geteuid()}",
                "Somebody else has put a socket there: remove it, and see who may write into that folder.",
            )

    @staticmethod
    def _refused(path: str, failure: OSError) -> BrokerError:
        reason = failure.strerror or failure
        return error("ADDRESS", f"{path}: {reason}", "It is the socket of the directory's server; see who may use it.")


def fits(path: Path) -> bool:
    """Whether a path is short enough for a socket's address."""
    return len(os.fsencode(path)) <= UNIX_PATH_BYTES_MAX


def check_private(folder: Path) -> None:
    """Check that a folder, if it is there, is a real one, ours, and closed to others.

    Raises:
        BrokerError: ADDRESS; it is not.
    """
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        problem = "a symbolic link"
    elif not stat.S_ISDIR(status.st_mode):
        problem = "no folder"
    elif status.st_uid != os.geteuid():
        problem = f"a folder of user {status.st_uid}"
    elif status.st_mode & _OTHERS:
        problem = f"a folder of mode {stat.S_IMODE(status.st_mode):04o}"
    else:
        return
    raise error(
        "ADDRESS",
        f"{folder}: got {problem}, expected a folder of mode 0700 of this process's user, {os.geteuid()}",
        "Sockets go there. Remove it, give the data directory a shorter path, or set XDG_RUNTIME_DIR.",
    )


def make_private(folder: Path) -> None:
    """Make a folder that nobody else can enter, whatever the umask; one that is there is checked.

    Raises:
        BrokerError: ADDRESS; what is there is not private.
        OSError: the system refuses.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=FOLDER_MODE)
        folder.chmod(FOLDER_MODE)
    check_private(folder)


def peer_of(sock: socket.socket) -> Peer:
    """Return who listened at the other end of a connected Unix socket."""
    with suppress(OSError):
        if sys.platform == "darwin":
            pid = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
            # struct xucred: version, uid, number of groups, …
            _, uid = struct.unpack_from("=II", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76))
            return Peer(pid or None, uid)
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        # 0: a process of another pid namespace.
        return Peer(pid or None, uid)
    return Peer(None, None)
