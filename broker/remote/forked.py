"""Buses that a forked child inherits and may not use: their broker, or their socket, is the parent's.

After a fork a child's copy of every open bus refuses with FORKED, until the child opens one of its own. Its copy of the
socket is let go: while it is held, the server takes a parent that has died for one that is merely silent.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["watch"]


class Inherited(Protocol):
    """What a child must not use."""

    def on_forked(self) -> Iterable[int]:
        """This is a child process: refuse from now on. Returns the descriptors that are the parent's."""


_open: WeakSet[Inherited] = WeakSet()


def watch(bus: Inherited) -> None:
    """Tell a bus when it finds itself in a child."""
    _open.add(bus)


def _after_fork_in_child() -> None:
    descriptors = [descriptor for bus in list(_open) for descriptor in bus.on_forked()]
    _open.clear()
    if not descriptors:
        return
    # The numbers stay taken, by nothing: whoever believes to own them closes no stranger's file.
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
