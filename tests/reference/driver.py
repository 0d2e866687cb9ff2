"""The load driver's payload and ledger in plain Python: what `driver_ledger.h` does, said again."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U64 = (1 << 64) - 1
STAMP = struct.Struct("<QQII")


def check_of(stamp: int, time_ns: int, channel: int) -> int:
    """Bind the three fields of a stamp together."""
    mixed = (
        0x27D4EB2F165667C5 + stamp * 0x9E3779B97F4A7C15 + time_ns * 0xC2B2AE3D27D4EB4F + channel * 0x165667B19E3779F9
    )
    mixed &= U64
    mixed ^= mixed >> 32
    return (mixed * 0xD6E8FEB86659FD93 & U64) >> 32


def payload_of(publisher: int, counter: int, time_ns: int, channel: int, payload_bytes: int) -> bytes:
    """Build a payload as a publisher sends it."""
    state, pattern = 0x2545F491, bytearray()
    for _ in range(payload_bytes):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        pattern.append(state >> 24)
    stamp = publisher << 48 | counter
    pattern[:24] = STAMP.pack(stamp, time_ns, channel, check_of(stamp, time_ns, channel))
    return bytes(pattern)


@dataclass
class Ledger:
    """One flow's account: every counter is seen, or missing, or still to come."""

    next: int = 0
    missing: set[int] = field(default_factory=set)
    duplicated: int = 0
    reordered: int = 0

    def take(self, counter: int) -> None:
        if counter >= self.next:
            self.missing.update(range(self.next, counter))
            self.next = counter + 1
        elif counter in self.missing:
            self.missing.remove(counter)
            self.reordered += 1
        else:
            self.duplicated += 1

    def lost(self, sent: int) -> int:
        return len(self.missing) + sent - self.next
