"""What the tests of the log share: small logs, and filling them from a chain of groups."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker.log import Log
from tests.reference.groups import Tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.log import Recovery
    from tests.reference.chains import Chain

KIB = 1024
SEGMENT_BYTES = 64 * KIB


class Opened:
    """A recovered log, what is stored in it, and where it ends."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.tables = Tables()
        self.recovery: Recovery = log.recover()
        log.load_all(self.tables)

    def append(self, chain: Chain, *args: object, **kwargs: object) -> bytes:
        """Build the next group of a chain and store it; returns its bytes."""
        value = chain.build(*args, **kwargs)  # type: ignore[arg-type]
        self.log.append(chain.number, value)
        chain.commit(value)
        return value

    def fill(self, chain: Chain, groups: int, channels: int = 7, payload_bytes: int = 500) -> None:
        """Append groups of three chunks of two records each."""
        for _ in range(groups):
            number = chain.number + 1
            picked = [(number * step) % channels + 1 for step in (1, 2, 5)]
            self.append(chain, [(channel, [bytes([number % 251]) * payload_bytes, b""]) for channel in picked])

    def all_groups(self, bytes_max: int = 100 * KIB) -> list[tuple[int, int, bytes]]:
        """Read everything in bus order, slice by slice."""
        place, chunks = (0, 0), []
        while True:
            found, after = self.log.read_groups(*place, bytes_max, None)
            chunks += found
            if after == place:
                return chunks
            place = after

    def all_of_channel(self, channel: int, bytes_max: int = 10 * KIB) -> list[tuple[int, int, bytes]]:
        """Read one channel wholly, slice by slice."""
        chunks: list[tuple[int, int, bytes]] = []
        while found := self.log.read_channel(channel, last_sequence(chunks), bytes_max):
            chunks += found
        return chunks


def last_sequence(chunks: list[tuple[int, int, bytes]]) -> int:
    """Return the last sequence of the last chunk, 0 when there is none."""
    if not chunks:
        return 0
    chunk = chunks[-1][2]
    return int.from_bytes(chunk[24:32], "little") + int.from_bytes(chunk[32:36], "little") - 1


@contextmanager
def opened(path: Path, segment_bytes: int = SEGMENT_BYTES, reserve_bytes: int = 0) -> Iterator[Opened]:
    """Open and recover a log of small segments, and close it at the end."""
    log = Log.open(path, segment_bytes=segment_bytes, reserve_bytes=reserve_bytes, group_bytes_max=64 * KIB)
    try:
        yield Opened(log)
    finally:
        log.close()


def segment_files(path: Path) -> list[Path]:
    """Return the files of the segments, in order."""
    return sorted((path / "journal").glob("*.seg"))
