"""Whether there is room for the next group: asked of the file system before a group is handed to LMDB.

A reserve stays free for what must go on when publishing stops: sealing, and the end of the run. Asking costs a system
call, so an answer is spent before the next question: half of the room that it found, and never for longer than
`ANSWER_S`, since other programs write to the same disk.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from broker.log.errors import append_full, free_bytes

if TYPE_CHECKING:
    from pathlib import Path

ANSWER_S = 0.25
_MIB = 1024 * 1024
# What a commit takes besides its value: tree pages that are written anew, and the rest of the last page.
OVERHEAD_BYTES = 64 * 1024


class Space:
    """Guards a folder's reserve; the commit thread only.

    Args:
        folder: where the segments are.
        reserve_bytes: what must stay free after a group, ≥ 0.
    """

    def __init__(self, folder: Path, reserve_bytes: int) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._credit_bytes = 0
        self._asked_s = float("-inf")

    def take(self, size_bytes: int) -> None:
        """Count a group in, or refuse it.

        Args:
            size_bytes: of the group.

        Raises:
            AppendFull: it would eat into the reserve. The next call asks the file system again.
        """
        need_bytes = size_bytes + OVERHEAD_BYTES
        if need_bytes > self._credit_bytes or time.monotonic() - self._asked_s > ANSWER_S:
            self._ask(need_bytes)
        self._credit_bytes -= need_bytes

    def _ask(self, need_bytes: int) -> None:
        free = free_bytes(self._folder)
        room = free - self._reserve_bytes
        if room < need_bytes:
            self._credit_bytes = 0
            raise append_full(
                f"{self._folder}: {free} bytes are free, a group of {need_bytes} bytes would leave less than the"
                f" reserve of {self._reserve_bytes} bytes"
            )
        self._credit_bytes = max(room // 2, need_bytes)
        self._asked_s = time.monotonic()
