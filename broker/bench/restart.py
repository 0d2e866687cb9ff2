"""The work `restart`: a start after SIGKILL, with much stored, a part of it not archived, and nothing cached.

The first part is published and archived; then the archiver is held with SIGSTOP, and the rest is published. What the
files hold is looked up when the server is dead, so the figures are those of the disk and not what was intended. The
time runs from the start of the new process until its ready file is there; the interpreter's own start is in it.

That a start is quick says nothing unless it found everything: the heads of all channels are compared with those before,
their sum with what was acknowledged, and the newest messages of some channels are read back.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from broker.bench.archived import SETTLE_S
from broker.bench.channels import forget_cached
from broker.bench.conversation import Conversation
from broker.bench.load import Load, complaints
from broker.bench.options import RECORD_OVERHEAD_BYTES, Options
from broker.bench.result import Result, latency_of
from broker.bench.server import Probe
from broker.log.archive_task import archive_path
from broker.log.segment import SUFFIX
from broker.model.errors import error
from broker.model.history import NAMES_MAX
from broker.model.settings import MIB
from broker_native.histogram import Histogram
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from broker.bench.server import OwnServer

PORTION_BYTES: Final = 64 * MIB
"""What is published before the server is asked again how much it has stored."""

SAMPLE: Final = 100
"""Channels whose newest messages are read back."""

LAST: Final = 50
"""How many of them."""


def run_restart(options: Options, server: OwnServer) -> Result:
    """Store, kill, forget what is cached, start, and look whether all is there.

    Raises:
        BrokerError: the server refused something, does not get done with its archive, or does not start again.
    """
    with ExitStack() as stack:
        target = server.start()
        archiver = Archiver(server.data)
        stack.callback(archiver.end)
        load = Load(options, target, stack)
        load.add_publishers()
        begun = time.monotonic()
        failures = store(load, options.stored_bytes - options.unarchived_bytes)
        await_taken_in(target.url)
        failures += store(load, options.stored_bytes, archiver.hold)
        publishing_s = time.monotonic() - begun
        acked = load.driver.acked
        with Conversation(target.url) as conversation:
            before = heads(conversation, load.room)
        server.end(signal.SIGKILL)
    found = sizes(server.data)
    forget_cached(server.data)
    begun = time.monotonic()
    target = server.start()
    ready_s = time.monotonic() - begun
    probe = Probe(target)
    with Conversation(target.url) as conversation:
        stats = conversation.stats()
        names = random.Random(1).sample(load.names, min(SAMPLE, len(load.names)))
        failures += misread(conversation, names[:1], before)
        first_read_s = time.monotonic() - begun
        failures += misread(conversation, names, before)
        after = heads(conversation, load.room)
    lost, surplus = differences(before, after)
    if surplus:
        failures.append(f"{surplus} messages more than before the kill")
    if sum(before.values()) != acked:
        failures.append(f"{acked} messages were acknowledged, the heads before the kill said {sum(before.values())}")
    probe.figures()
    return Result(
        work=str(options.work),
        options=options,
        messages=acked,
        seconds=publishing_s,
        latency_us=latency_of(Histogram()),
        lost=lost,
        server_memory_bytes=probe.memory_bytes_max,
        errors=failures,
        extra=found
        | {
            "ready_ms": round(ready_s * 1000, 1),
            "ready_cpu_ms": round(float(stats["cpu_s"]) * 1000, 1),
            "first_read_ms": round(first_read_s * 1000, 1),
        },
    )


def store(load: Load, until_bytes: int, before_each: Callable[[], None] = lambda: None) -> list[str]:
    """Publish in portions until the server's groups have so many bytes; return what went wrong."""
    options = load.options
    share = options.batch * options.publishers
    with Conversation(load.target.url) as conversation:
        while (left := until_bytes - int(conversation.stats()["bytes"])) > 0:
            before_each()
            messages = min(left, PORTION_BYTES) // (options.payload + RECORD_OVERHEAD_BYTES)
            outcome = load.driver.run(messages=max(messages // share, 1) * share, patience_s=options.patience_s)
            failures = complaints(outcome, options)
            if failures:
                return [f"while publishing: {failure}" for failure in failures]
    return []


class Archiver:
    """The process that writes a server's archive, as its lock names it.

    Args:
        data: the server's data directory.
    """

    def __init__(self, data: Path) -> None:
        self._lock = archive_path(data).with_name("lock")
        self._held = 0

    def hold(self) -> None:
        """Stop it where it is, once; does nothing as long as there is none."""
        words = self._lock.read_text().split() if self._lock.exists() and not self._held else []
        if words[:1] == ["process"]:
            self._held = int(words[1])
            os.kill(self._held, signal.SIGSTOP)

    def end(self) -> None:
        """End it if it was stopped: where the system does not do that with the server's end, nobody else would."""
        if self._held:
            with suppress(ProcessLookupError):
                os.kill(self._held, signal.SIGKILL)
            self._held = 0


def await_taken_in(url: str) -> None:
    """Wait until a server has archived all that is sealed.

    Raises:
        BrokerError: UNAVAILABLE; that takes too long.
    """
    deadline = time.monotonic() + SETTLE_S
    with Conversation(url) as conversation:
        while (left := int(conversation.stats()["archive_backlog"])) > 0:
            if time.monotonic() > deadline:
                raise error("UNAVAILABLE", f"archive: {left} segments are left after {SETTLE_S:g} s")
            time.sleep(0.1)


def sizes(data: Path) -> dict[str, float]:
    """Return how many bytes a data directory holds, and how many of them are in segments."""
    files = {file: file.stat().st_size for file in data.rglob("*") if file.is_file()}
    return {
        "stored_bytes": sum(files.values()),
        "unarchived_bytes": sum(size for file, size in files.items() if file.suffix == SUFFIX),
    }


def heads(conversation: Conversation, room: str) -> dict[str, int]:
    """Return the head of each channel of a room."""
    found: dict[str, int] = {}
    more, after = True, ""
    while more:
        asked = {"prefix": f"{room}.", "after": after, "limit": NAMES_MAX, "details": True}
        fields = conversation.ask("channels", asked)
        found |= {row[0]: row[3] for row in fields["channels"]}
        more = fields["more"]
        after = fields["channels"][-1][0] if fields["channels"] else after
    return found


def differences(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[int, int]:
    """Return how many messages are missing, and how many there are that were not, over all channels."""
    steps = [after.get(name, 0) - before.get(name, 0) for name in before.keys() | after.keys()]
    return -sum(step for step in steps if step < 0), sum(step for step in steps if step > 0)


def misread(conversation: Conversation, names: list[str], before: Mapping[str, int]) -> list[str]:
    """Read the newest messages of channels, and say what is not as it was."""
    faults = []
    for name in names:
        fields = conversation.ask("history", {"channel": name, "last": LAST})
        # Whose chunks are damaged cannot be read: the server proves them, and so does this.
        batches = FrameReader(error, 0).chunks(fields["chunks"], name)
        expected = min(before.get(name, 0), LAST)
        got = sum(map(len, batches))
        if (fields["head"], got) != (before.get(name, 0), expected):
            faults.append(f"{name}: head {fields['head']} and {got} messages, expected {before.get(name)}, {expected}")
    return faults
