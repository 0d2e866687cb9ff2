"""The server's end of being started by an opener of a shared bus: nobody's child, and heard through a pipe.

The opener hands two descriptors over: the writing end of a pipe, and the open file `starting`, whose flock(2) says that
a start is under way. Both are inherited, so they outlive the opener: while this process starts, nobody starts another
one, and when it dies without a word the end of the pipe says so. What is said is one JSON object, `{"ready": {…}}` or
`{"error": {…}}`.

Nothing heavy is imported here: the process forks as soon as it can, and the opener waits for its child no longer.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from broker.model.errors import to_wire

if TYPE_CHECKING:
    from typing import Self

    from broker.model.errors import BrokerError

__all__ = ["Starter"]

UMASK = 0o077
"""What nobody else's business is, whatever the umask of the program that happened to start the server."""


class Starter:
    """Who waits for this server, if anybody still does.

    Args:
        ready: the pipe's writing end.
        lock: the open file that holds the right to start.
    """

    def __init__(self, ready: int, lock: int) -> None:
        self._open = [ready, lock]
        for descriptor in self._open:
            # Children of ours, the archiver above all, must hold neither.
            os.set_inheritable(descriptor, False)

    @classmethod
    def detach(cls, ready: int, lock: int) -> Self:
        """Go on in a process that is nobody's child; returns in that one only.

        The caller is a session's leader, so what goes on has no terminal and can get none.
        """
        starter = cls(ready, lock)
        if os.fork():
            os._exit(0)
        os.umask(UMASK)
        return starter

    def ready(self, body: dict[str, Any]) -> None:
        """Tell that connections are taken, and let others start servers again."""
        self._tell({"ready": body})

    def failed(self, failure: BrokerError) -> None:
        """Tell why there will be no server. Does nothing once it was ready."""
        self._tell({"error": to_wire(failure)})

    def _tell(self, message: dict[str, Any]) -> None:
        if not self._open:
            return
        ready, lock = self._open
        self._open = []
        # The opener may be gone; the server serves others as well. A pipe takes this much at once.
        with suppress(OSError):
            os.write(ready, json.dumps(message).encode() + b"\n")
        os.close(ready)
        os.close(lock)
