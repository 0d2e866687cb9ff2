"""The newest ephemeral chunks, kept in memory while somebody lags: what such a reader may still get of them.

Nobody reads them from anywhere else. What has left the ring is dropped, and its readers are told so.
"""

from __future__ import annotations

from collections import deque

from broker_native.groups import chunk_heads

__all__ = ["Passing"]


class Passing:
    """A ring of turns, bounded in bytes.

    Args:
        bytes_max: How much it keeps; one turn stays whatever its size.
    """

    def __init__(self, bytes_max: int) -> None:
        self._turns: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._bytes_max = bytes_max

    @property
    def size_bytes(self) -> int:
        """What it holds."""
        return self._bytes

    def add(self, turn: int, value: bytes) -> None:
        """Keep a turn's ephemeral chunks; the oldest turns make room."""
        self._turns.append((turn, value))
        self._bytes += len(value)
        while self._bytes > self._bytes_max and len(self._turns) > 1:
            self._bytes -= len(self._turns.popleft()[1])

    def clear(self) -> None:
        """Forget all of them: nobody has missed any."""
        if self._turns:
            self._turns.clear()
            self._bytes = 0

    def reaches(self, turn: int) -> bool:
        """Whether it has everything from a turn on."""
        return not self._turns or self._turns[0][0] <= turn

    def since(self, turn: int, index: int) -> list[tuple[int, bytes]]:
        """Return (channel id, chunk) of all that it has from a turn on, and of that turn from an index on, in order."""
        found: list[tuple[int, bytes]] = []
        for number, value in self._turns:
            if number >= turn:
                begin = index if number == turn else 0
                heads = [
                    (at, channel, offset, size)
                    for channel, chunks in chunk_heads(value, 0).items()
                    for at, _, _, offset, size in chunks
                    if at >= begin
                ]
                found += [(channel, value[offset : offset + size]) for _, channel, offset, size in sorted(heads)]
        return found
