"""Reading states back: the records of a state channel, from the log to whoever has the state.

The channel is brought into memory and held there; its records are read on the reader thread, in slices. It belongs to
the loop's thread.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from broker.core.own import payloads_of
from broker.core.states import latest
from broker.events import emit
from broker.model.errors import BrokerError, error
from broker.model.names import display

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.ports import StoredReader
    from broker.core.sequencer import Sequencer
    from broker.core.states import Stateful
    from broker.node.loader import Loader

    Submit = Callable[..., asyncio.Future[list[bytes]]]
    Restored = Callable[[bytes, list[bytes]], None]
    Done = Callable[[BrokerError | None], None]

__all__ = ["StateStore"]

SLICE_BYTES = 1 << 20
NAMES_AT_ONCE = 4_096


class StateStore:
    """Brings states into memory.

    Args:
        core: Where they are kept.
        log: Where they are stored.
        loader: Brings their channels into memory.
        submit: Has the reader thread call something.
        kick: Has the turn end.
    """

    def __init__(
        self, core: Sequencer, log: StoredReader, loader: Loader, submit: Submit, kick: Callable[[], None]
    ) -> None:
        self._core = core
        self._log = log
        self._loader = loader
        self._submit = submit
        self._kick = kick

    def touch(self, state: Stateful) -> None:
        """The state has changed: have that stored with the open group, soon."""
        self._core.states.touch(state)
        self._kick()

    def load(self, state: Stateful, restore: Restored, done: Done) -> None:
        """Restore a state from what is stored, and keep it from then on.

        Args:
            state: The state; it is kept by nobody, and nothing of its channel is pending.
            restore: Called with the newest snapshot (b"" for none) and the changes since, oldest first. What it raises
                because of them refuses who waits.
            done: Called once: with None when the state is restored and its channel held, which holds until it returns,
                or with why it cannot be read. Never from within this call.
        """
        name = state.channel

        def have(failure: BrokerError | None) -> None:
            if failure is None:
                try:
                    self._core.load(name)
                    self._core.tails.hold(name)
                except BrokerError as refusal:
                    failure = refusal
            if failure is not None:
                done(failure)
                return
            info = self._core.tails.info(name)
            assert info is not None
            job = self._submit(self._read, info[0], info[3] - 1, info[4])
            job.add_done_callback(read)

        def read(job: asyncio.Future[list[bytes]]) -> None:
            if job.cancelled():
                return
            failure = job.exception()
            if failure is None:
                snapshot, changes, changed_bytes = latest(job.result())
                failure = _restored(name, restore, snapshot, changes)
                if failure is None:
                    self._core.states.add(state, len(snapshot), changed_bytes)
                    done(None)
                    return
            self._core.tails.release(name)
            if isinstance(failure, MemoryError):
                failure = error("LIMIT", f"memory: none is left for {display(name)}", "give the process more memory")
            if not isinstance(failure, BrokerError):
                emit("load_failed", failure=failure)
                failure = error("STORAGE_FAILED", f"{display(name)}: it cannot be read back")
            done(failure)

        if self._loader.missing([name]):
            try:
                self._loader.need([name], have, self)
            except BrokerError as refusal:
                # Told later, as any other outcome.
                failure = refusal
                self._submit(list).add_done_callback(lambda _: done(failure))
        else:
            self._submit(list).add_done_callback(lambda _: have(None))

    def unload(self, state: Stateful) -> None:
        """Keep a state no longer; nothing of it is pending. Its channel may be evicted, and loaded again."""
        self._core.states.remove(state)
        self._core.tails.release(state.channel)

    def _read(self, channel: int, after: int, end: int) -> list[bytes]:
        """Read all payloads between two sequences; on the reader thread."""
        payloads: list[bytes] = []
        while channel and after + 1 < end:
            for _, _, chunk in self._log.read_channel(channel, after, SLICE_BYTES, end):
                found = payloads_of(chunk, after)
                payloads += found
                after += len(found)
        return payloads

    def names(self, prefix: bytes) -> asyncio.Future[list[bytes]]:
        """Find the stored channels with a prefix, ascending; before this run has made or removed one of them."""
        return self._submit(self._names, prefix)

    def _names(self, prefix: bytes) -> list[bytes]:
        names: list[bytes] = []
        more = self._log.names(prefix, b"", NAMES_AT_ONCE)
        while more:
            names += more
            more = self._log.names(prefix, more[-1], NAMES_AT_ONCE)
        return names


def _restored(name: bytes, restore: Restored, snapshot: bytes, changes: list[bytes]) -> BrokerError | None:
    """Have a state take what is stored of it; returns why it does not understand that."""
    try:
        restore(snapshot, changes)
    except (ValueError, LookupError, TypeError, struct.error) as damage:
        emit("load_failed", failure=damage)
        return error("STORAGE_CORRUPT", f"{display(name)}: what is stored cannot be understood: {damage}")
    return None
