"""A kernel's work, and the same with a twentieth more to do: what the gate of instructions must tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.works import Works
from broker_native.names import is_channel

if TYPE_CHECKING:
    from benchmarks.works import Run

COUNT = 400
NAMES = [b"room.%d.messages" % number for number in range(COUNT)]
WORKS = Works("planted")


@WORKS.work(COUNT, COUNT)
def plain() -> Run:
    return lambda: sum(map(is_channel, NAMES))


@WORKS.work(COUNT, COUNT + COUNT // 20)
def slower() -> Run:
    names = [*NAMES, *NAMES[: COUNT // 20]]
    return lambda: sum(map(is_channel, names))
