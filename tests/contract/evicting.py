"""A broker that keeps nothing in memory that it may evict: `python -m tests.contract.evicting serve …`.

After each commit the active segment is sealed, so that all that is stored can be looked up, and everything that nobody
holds is evicted at once. Whatever a frame needs then comes through the loader, each time. The rest is the product's.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from broker.cli.main import main
from broker.log.log import Log
from broker.node.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.core.group import Group
    from broker_native.crc32c import Buffer

USED_BEFORE_S = (1 << 32) - 1
"""Whenever it was used, it was used before this."""


@contextmanager
def evicting() -> Iterator[list[int]]:
    """Have every node evict at once what it may; gives how many channels and lines went, commit by commit."""
    append, committed = Log.append, Node._committed
    gone: list[int] = []

    def append_and_seal(self: Log, number: int, value: Buffer) -> None:
        append(self, number, value)
        self.rotate()

    def committed_and_evicted(self: Node, group: Group) -> None:
        committed(self, group)
        gone.append(self.core.evict(self._log.settled_group, USED_BEFORE_S, self.tails.slots))

    with patch.object(Log, "append", append_and_seal), patch.object(Node, "_committed", committed_and_evicted):
        yield gone


if __name__ == "__main__":
    with evicting():
        sys.exit(main())
