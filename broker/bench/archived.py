"""What the works that are about the archive have in common: how a server lies on the disk, and when it has archived.

A server archives sealed segments only, and seals one when it is full. To have everything in the archive that was stored
up to a moment, one publishes beside it until the segment of that moment is sealed.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.bench.conversation import Conversation
from broker.bench.load import Load, complaints
from broker.bench.options import RECORD_OVERHEAD_BYTES, Work
from broker.bench.server import Probe
from broker.model.errors import error
from broker.model.settings import GIB, KIB, MIB

if TYPE_CHECKING:
    from broker.bench.options import Options

SETTLE_S: Final = 600.0
"""How long a server may take to archive what it was given."""

SEGMENT_BYTES: Final = 64 * MIB
"""A segment, as by default."""

SEGMENT_BYTES_SMALL: Final = 8 * MIB
"""A segment where there is little to store: about the least that a server with the default limits takes."""

SEGMENTS: Final = 8
"""What is to be archived fills at least so many segments, so that a few bytes show what many do."""

FILLER_SEGMENTS: Final = 2
"""Segments that are filled beside it, so that the one before them is sealed."""

FILLER_PAYLOAD_BYTES: Final = 64 * KIB

BACKLOG_BYTES_MAX: Final = 4 * GIB
"""What may wait for the archive, as by default."""


def stored_bytes(options: Options) -> int:
    """Return about how many bytes a work stores before it reads or restarts, 0 when nobody knows."""
    return options.stored_bytes or options.messages * (options.payload + RECORD_OVERHEAD_BYTES)


def segment_bytes(options: Options) -> int:
    """Return the size of a segment for a work that is about the archive; of a server that is not ours, the default."""
    if options.url is not None:
        return SEGMENT_BYTES
    return max(SEGMENT_BYTES_SMALL, min(SEGMENT_BYTES, stored_bytes(options) // SEGMENTS))


def storage_for(options: Options) -> dict[str, int]:
    """Return the settings of a server's storage that a work needs; none for most."""
    if options.work is not Work.RESTART and not options.archived:
        return {}
    # From three quarters of the bound on commits are slowed down.
    return {
        "segment_bytes": segment_bytes(options),
        "backlog_bytes_max": max(BACKLOG_BYTES_MAX, 2 * options.unarchived_bytes),
    }


def archive_all(load: Load) -> None:
    """Have everything archived that a load has stored.

    Raises:
        BrokerError: UNAVAILABLE when that takes too long; whatever the server refuses.
    """
    with Conversation(load.target.url) as conversation:
        group = int(conversation.stats()["groups"])
    fill = replace(
        load.options,
        work=Work.PUBSUB,
        publishers=1,
        channels=1,
        batch=1,
        payload=FILLER_PAYLOAD_BYTES,
        messages=FILLER_SEGMENTS * segment_bytes(load.options) // FILLER_PAYLOAD_BYTES,
        seconds=0.0,
        rate=0,
        archived=False,
    )
    filler = Load(fill, load.target, load.stack)
    filler.add_publishers()
    faults = complaints(filler.run(Probe(load.target)), fill)
    if faults:
        raise error("UNAVAILABLE", f"while filling segments: {'; '.join(faults)}")
    await_archived_group(load.target.url, group)


def await_archived_group(url: str, group: int) -> None:
    """Wait until a server has a group in its archive.

    Raises:
        BrokerError: UNAVAILABLE; that takes too long.
    """
    deadline = time.monotonic() + SETTLE_S
    with Conversation(url) as conversation:
        while (archived := int(conversation.stats()["archived_group"])) < group:
            if time.monotonic() > deadline:
                raise error("UNAVAILABLE", f"archive: at group {archived} of {group} after {SETTLE_S:g} s")
            time.sleep(0.1)
