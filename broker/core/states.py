"""What the broker remembers beside messages: states, each kept as a log of its changes in a channel of its own.

A state channel (`$…`) holds one snapshot and the changes since. A change is written in the group of whatever changed
the state, so both are stored or neither is; reading the channel back makes the state again what it was. Nothing of this
is new to the log: changes are replayed, archived, verified and backed up as the records that they are.

What changed is asked for once a group, when it closes, however often it changed until then. When the changes outgrow
the snapshot by far, the next record is a new snapshot, and once that is committed what is before it is trimmed.

After a failed commit the states of the groups that are undone have gone too far. Each of them is told, and is made anew
from what is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from broker.core.own import record_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.core.sequencer import Sequencer
    from broker.model.errors import BrokerError

__all__ = ["Stateful", "States", "latest"]

CHANGE, SNAPSHOT, SNAPSHOT_GOES_ON = b"\0", b"\1", b"\2"
"""The first byte of each record. A snapshot that is too large for one record is several, in one group."""
PART_BYTES_MAX = 256 << 10
SNAPSHOT_AFTER_BYTES_MIN = 64 << 10
"""Changes of so many bytes are not worth a snapshot, however small that would be."""
SNAPSHOT_AFTER_TIMES = 4
"""Reading a state back costs at most so many times, and once more, what reading its snapshot would."""


class Stateful(Protocol):
    """A state that is kept so. Everything belongs to the core's thread."""

    @property
    def channel(self) -> bytes:
        """Its channel, `$…`: in memory, with its profile, and held there for as long as the state is."""

    def changes(self) -> bytes:
        """Return what has changed since the last call, to be stored; b"" for nothing. Asked once a group."""

    def snapshot(self) -> bytes:
        """Return the whole state, changes that were returned included, as `restore` takes it."""

    def undone(self) -> None:
        """A commit failed: what has changed since some group is void, and the state is to be restored anew."""


class _Kept:
    """How much of a state is stored.

    Attributes:
        snapshot_bytes: Of its newest snapshot.
        changed_bytes: Of the changes since.
        group: The last group that has something of it.
    """

    __slots__ = ("changed_bytes", "group", "snapshot_bytes")

    def __init__(self, snapshot_bytes: int, changed_bytes: int) -> None:
        self.snapshot_bytes = snapshot_bytes
        self.changed_bytes = changed_bytes
        self.group = 0


class States:
    """The states in memory.

    Args:
        core: Whose groups they are stored in.
    """

    def __init__(self, core: Sequencer) -> None:
        self._core = core
        self._kept: dict[Stateful, _Kept] = {}
        self._touched: dict[Stateful, None] = {}
        self._pending: dict[Stateful, None] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def settled(self) -> bool:
        """Whether all that has changed is in a group that is closed."""
        return not self._touched

    def add(self, state: Stateful, snapshot_bytes: int = 0, changed_bytes: int = 0) -> None:
        """Keep a state, which is restored.

        Args:
            state: The state.
            snapshot_bytes, changed_bytes: Sizes of what it was restored from.
        """
        self._kept[state] = _Kept(snapshot_bytes, changed_bytes)

    def remove(self, state: Stateful) -> None:
        """Forget a state; what it has changed and not stored is lost."""
        self._kept.pop(state, None)
        self._touched.pop(state, None)
        self._pending.pop(state, None)

    def touch(self, state: Stateful) -> None:
        """The state has changed: ask for it when the open group closes. See to it that a turn ends (`Node.kick`)."""
        self._touched[state] = None

    def pending(self, state: Stateful) -> bool:
        """Whether changes of it are not committed: such a state must not be restored from what is stored."""
        return state in self._touched or state in self._pending

    def collect(self) -> None:
        """Put into the open group, which is about to be closed, what has changed."""
        if not self._touched:
            return
        touched, self._touched = self._touched, {}
        # Publishers may be refused at the moment, for want of memory. What the group has already, it has whole.
        tails = self._core.tails
        refuse_code, tails.refuse_code = tails.refuse_code, 0
        try:
            for state in touched:
                changes = state.changes()
                if changes:
                    self._store(state, changes)
        finally:
            tails.refuse_code = refuse_code

    def _store(self, state: Stateful, changes: bytes) -> None:
        kept = self._kept[state]
        kept.group = self._core.tails.group_number
        self._pending[state] = None
        limit = max(SNAPSHOT_AFTER_BYTES_MIN, SNAPSHOT_AFTER_TIMES * kept.snapshot_bytes)
        if len(changes) < PART_BYTES_MAX and kept.changed_bytes + len(changes) <= limit:
            self._core.own.store(state.channel, record_of(CHANGE + changes))
            kept.changed_bytes += len(changes)
            return
        whole = state.snapshot()
        first = self._core.own.store(state.channel, record_of(SNAPSHOT + whole[:PART_BYTES_MAX]))
        for at in range(PART_BYTES_MAX, len(whole), PART_BYTES_MAX):
            self._core.own.store(state.channel, record_of(SNAPSHOT_GOES_ON + whole[at : at + PART_BYTES_MAX]))
        kept.snapshot_bytes, kept.changed_bytes = len(whole), 0
        channel = state.channel

        def trim(failure: BrokerError | None) -> None:
            if failure is None and self._core.tails.info(channel) is not None:
                self._core.trim(channel, first, lambda _: None)

        self._core.requests.append(trim)

    def committed(self, number: int) -> None:
        """A group is committed."""
        if self._pending:
            self._pending = {state: None for state in self._pending if self._kept[state].group > number}

    def failed(self) -> None:
        """The pending groups are undone."""
        undone = {**self._pending, **self._touched}
        self._pending, self._touched = {}, {}
        for state in undone:
            self._kept.pop(state, None)
        for state in undone:
            state.undone()


def latest(payloads: Iterable[bytes]) -> tuple[bytes, list[bytes], int]:
    """Take a state channel's payloads apart, oldest first.

    Returns:
        The newest snapshot, b"" when there is none; the changes after it; and their bytes.
    """
    snapshot = bytearray()
    changes: list[bytes] = []
    for payload in payloads:
        kind, body = payload[:1], payload[1:]
        if kind == SNAPSHOT:
            snapshot, changes = bytearray(body), []
        elif kind == SNAPSHOT_GOES_ON:
            snapshot += body
        else:
            changes.append(body)
    return bytes(snapshot), changes, sum(map(len, changes))
