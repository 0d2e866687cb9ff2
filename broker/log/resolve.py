"""What is stored of channels and producers, over all layers: the archive, and the segments that are not in it yet.

A layer that is newer has the last word on a name and on where a channel ends, and a dropped channel is hidden in all
that is older; epochs, levels and trims add up. So layers are asked from the newest to the oldest, and of what is known
by then no more than can still add to it.

Segments are taken before the archive's snapshot, and those that the snapshot has are left out: a segment may be in both
for a while, and in none never.

Any thread may ask; a question is bounded by its keys. Sorted ones are answered fastest.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Protocol, TypeVar

from broker.model.errors import StorageError
from broker_native.archive import channel_keys
from broker_native.pages import CHANNELS, CLOSED, LINES, adds_up, join_older
from broker_native.sorting import sort_keys, sort_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker.log.archive import Archive
    from broker.log.recovery import Applier
    from broker.log.segment import Segment
    from broker.log.tables import SegmentTables

Result = TypeVar("Result")

BATCH = 4096
"""Keys that are looked up at once when everything is."""
PART = 1024
"""Names that are looked up without a look at whether another thread wants the interpreter: about a millisecond."""
_ENTRY_HEADER = Struct("<IHH")
_CHANNEL, _EPOCH, _TRIM = 1, 2, 7
_SNAPSHOT = 0x0002
_NAME_SIZE_AT, _NAME_AT = 18, 20
_NUMBER_AT = 24


def entries_of(entries: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (kind, flags, offset) of each entry of a run."""
    at, end = 0, len(entries)
    while at < end:
        size, kind, flags = _ENTRY_HEADER.unpack_from(entries, at)
        yield kind, flags, at
        at += max(size, _ENTRY_HEADER.size)


def read_again(segments: Callable[[], tuple[Segment, ...]], read: Callable[[tuple[Segment, ...]], Result]) -> Result:
    """Read from the segments that there are; again, if one of them went to the archive and was removed meanwhile.

    Args:
        segments: what there is now.
        read: takes them; it looks at the archive after that.
    """
    while True:
        taken = segments()
        try:
            return read(taken)
        except StorageError:
            if not any(segment.gone for segment in taken):
                raise


class Archived(Protocol):
    """What is asked of the archive; a `Snapshot` does it."""

    def ids(self, names: list[bytes]) -> list[int]:
        """As `Snapshot.ids`."""
        ...

    def channels(self, ids: list[int]) -> list[bytes]:
        """As `Snapshot.channels`."""
        ...

    def lines(self, producers: list[bytes]) -> list[bytes]:
        """As `Snapshot.lines`."""
        ...

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[tuple[bytes, int]]:
        """As `Snapshot.names`."""
        ...

    def producers(self, after: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """As `Snapshot.producers`."""
        ...


class Layers:
    """All layers at one instant: the archive, and segments from the newest to the oldest."""

    def __init__(self, snapshot: Archived, segments: Sequence[SegmentTables]) -> None:
        self._snapshot = snapshot
        self._segments = segments

    def ids(self, names: list[bytes]) -> list[int]:
        """Return the channels of ascending names, 0 for each that has none."""
        if not self._segments:
            return self._snapshot.ids(names)
        ids = [0] * len(names)
        known = bytearray(len(names))
        for tables in self._segments:
            for at, channel in zip(*tables.find_names(names, known), strict=True):
                ids[at] = max(channel, 0)
                known[at] = True
        open_names = [at for at in range(len(names)) if not known[at]]
        for at, channel in zip(open_names, self._snapshot.ids([names[at] for at in open_names]), strict=True):
            ids[at] = channel
        return ids

    def channels(self, ids: list[int]) -> list[bytes]:
        """Return the entries of ascending channels, b"" for each that is not there."""
        if not self._segments:
            return self._snapshot.channels(ids)
        keys = channel_keys(ids)
        state = bytearray(len(ids))
        parts: list[bytes | list[bytes] | None] = [None] * len(ids)
        for tables in self._segments:
            join_older(*tables.find_channels(keys, state), state, parts)
        if CLOSED not in state:
            found = self._snapshot.channels(ids)
        else:
            found = [b""] * len(ids)
            live = [at for at in range(len(ids)) if state[at] != CLOSED]
            for at, entries in zip(live, self._snapshot.channels([ids[at] for at in live]), strict=True):
                found[at] = entries
        return [old if newer is None else _joined(old, newer) for old, newer in zip(found, parts, strict=True)]

    def entries(self, names: list[bytes]) -> list[bytes]:
        """Return the entries of the channels of ascending names, b"" for each that has none."""
        ids = self.ids(names)
        known = sort_numbers(ids)
        if known and not known[0]:
            del known[0]
        entries = dict(zip(known, self.channels(known), strict=True))
        return [entries.get(channel, b"") for channel in ids]

    def lines(self, producers: list[bytes]) -> list[bytes]:
        """Return the LINE entries of ascending producers, b"" for each that is not there."""
        whole = bytearray(len(producers))
        parts: list[list[bytes]] = [[] for _ in producers]
        for tables in self._segments:
            for at, entry in zip(*tables.find_lines(producers, whole), strict=True):
                parts[at].append(entry)
                whole[at] = bool(int.from_bytes(entry[6:8], "little") & _SNAPSHOT)
        live = [at for at in range(len(producers)) if not whole[at]]
        for at, entry in zip(live, self._snapshot.lines([producers[at] for at in live]), strict=True):
            parts[at].append(entry)
        return [_going_on(part[::-1]) for part in parts]

    def names(self, prefix: bytes, after: bytes, count_max: int) -> tuple[list[bytes], bytes | None]:
        """Return names with a prefix that follow another one, and the last that was looked at, None for all."""
        given: dict[bytes, int] = {}
        bound: bytes | None = None
        ask = [layer.names for layer in self._segments]
        for names_in in (*ask, self._snapshot.names):
            rows = names_in(prefix, after, count_max)
            for name, channel in rows:
                given.setdefault(name, channel)
            if len(rows) == count_max:
                # Past its last name this layer has more, so others' names there may not be the next ones.
                bound = min(bound, rows[-1][0]) if bound is not None else rows[-1][0]
        names = sorted(name for name in given if bound is None or name <= bound)
        ids = sorted({given[name] for name in names})
        live = {channel for channel, entries in zip(ids, self.channels(ids), strict=True) if entries}
        return [name for name in names if given[name] in live], bound

    def all_ids(self) -> list[int]:
        """Return every channel that any layer has, ascending."""
        found = {int.from_bytes(key, "big") for tables in self._segments for key, _ in tables.items(CHANNELS)}
        rows = self._snapshot.names(b"", b"", BATCH)
        while rows:
            found.update(channel for _, channel in rows)
            rows = self._snapshot.names(b"", rows[-1][0], BATCH)
        return sorted(found)

    def all_producers(self) -> list[bytes]:
        """Return every producer that any layer has, ascending."""
        found = {key for tables in self._segments for key, _ in tables.items(LINES)}
        rows = self._snapshot.producers(b"", BATCH)
        while rows:
            found.update(producer for producer, _ in rows)
            rows = self._snapshot.producers(rows[-1][0], BATCH)
        return sorted(found)


class Tables:
    """Answers for everything that is stored.

    Args:
        archive: the archive.
        segments: the segments that there are now, oldest first.
    """

    def __init__(self, archive: Archive, segments: Callable[[], tuple[Segment, ...]]) -> None:
        self._archive = archive
        self._segments = segments

    def resolve(self, names: list[bytes]) -> list[bytes]:
        """Return for each name the entries of its channel, b"" when there is none; see `Log.resolve`."""

        def read(layers: Layers) -> list[bytes]:
            found: list[bytes] = []
            for begin in range(0, len(wanted), PART):
                found += layers.entries(wanted[begin : begin + PART])
            return found

        wanted = sort_keys(names)
        found = self._read(read)
        if wanted == names:
            return found
        by_name = dict(zip(wanted, found, strict=True))
        return [by_name[name] for name in names]

    def resolve_lines(self, producers: list[bytes]) -> list[bytes]:
        """Return for each producer its LINE entries, b"" when there is none; see `Log.resolve_lines`."""

        def read(layers: Layers) -> dict[bytes, bytes]:
            wanted = sorted(set(producers))
            return dict(zip(wanted, layers.lines(wanted), strict=True))

        found = self._read(read)
        return [found[producer] for producer in producers]

    def names_of(self, ids: list[int]) -> list[bytes | None]:
        """Return the name of each channel, None when there is none; see `Log.names_of`."""

        def read(layers: Layers) -> dict[int, bytes | None]:
            wanted = sorted(set(ids))
            return {channel: name_in(entries) for channel, entries in zip(wanted, layers.channels(wanted), strict=True)}

        found = self._read(read)
        return [found[channel] for channel in ids]

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[bytes]:
        """Return stored channels' names with a prefix that follow another one; see `Log.names`."""
        found: list[bytes] = []
        bound: bytes | None = after
        while bound is not None and len(found) < count_max:
            begin = bound

            def read(layers: Layers, begin: bytes = begin) -> tuple[list[bytes], bytes | None]:
                return layers.names(prefix, begin, count_max)

            names, bound = self._read(read)
            found += names
        return found[:count_max]

    def load_all(self, applier: Applier) -> None:
        """Apply the entries of everything that is stored; see `Log.load_all`."""
        ids, producers = self._read(Layers.all_ids), self._read(Layers.all_producers)
        for begin in range(0, len(ids), BATCH):
            some_ids = ids[begin : begin + BATCH]
            applier.apply_entries(b"".join(self._read(partial(Layers.channels, ids=some_ids))))
        for begin in range(0, len(producers), BATCH):
            some = producers[begin : begin + BATCH]
            applier.apply_entries(b"".join(self._read(partial(Layers.lines, producers=some))))

    def _read(self, read: Callable[[Layers], Result]) -> Result:
        def with_layers(segments: tuple[Segment, ...]) -> Result:
            with self._layers(segments) as layers:
                return read(layers)

        return read_again(self._segments, with_layers)

    @contextmanager
    def _layers(self, segments: tuple[Segment, ...]) -> Iterator[Layers]:
        with self._archive.snapshot() as snapshot:
            archived = snapshot.checkpoint.ordinal
            newest = [segment.tables for segment in reversed(segments) if segment.ordinal > archived]
            yield Layers(snapshot, [tables for tables in newest if tables is not None])


def name_in(entries: bytes) -> bytes | None:
    """Return the name that a channel's last CHANNEL entry gives it."""
    name = None
    for kind, _, at in entries_of(entries):
        if kind == _CHANNEL:
            name = entries[at + _NAME_AT : at + _NAME_AT + entries[at + _NAME_SIZE_AT]]
    return name


def _joined(archived: bytes, newer: bytes | list[bytes]) -> bytes:
    """Join a channel's entries: the archive's, and the segments', of several the newest first.

    Each epoch comes once, and what was trimmed behind all else.

    An archive that is being written to is ahead of its checkpoint, so what it has may come again. A trim may be past
    the heads before it, of which only the newest is asked for, and who applies it takes it no further than the head.
    """
    if isinstance(newer, bytes):
        if not archived:
            return newer
        newer = [newer]
    parts = [archived, *newer[::-1]] if archived else newer[::-1]
    if not any(map(adds_up, parts[1:])):
        return b"".join(parts)
    seen: set[bytes] = set()
    kept: list[bytes] = []
    trims: list[bytes] = []
    for entries in parts:
        for kind, _, at in entries_of(entries):
            entry = entries[at : at + int.from_bytes(entries[at : at + 4], "little")]
            if kind == _EPOCH:
                if entry in seen:
                    continue
                seen.add(entry)
            (trims if kind == _TRIM else kept).append(entry)
    return b"".join(kept + trims)


def _going_on(parts: list[bytes]) -> bytes:
    """Join a line's entries, oldest first, without those that the archive is ahead of."""
    highest = 0
    kept: list[bytes] = []
    for entry in parts:
        if entry:
            number, count = (int.from_bytes(entry[at : at + 8], "little") for at in (_NUMBER_AT, _NUMBER_AT + 8))
            if number + count - 1 > highest:
                highest = number + count - 1
                kept.append(entry)
    return b"".join(kept)
