"""A model of a disk that loses power: what a recorded process wrote, and what may be left of it.

The rules, those of a disk with honest syncs and sectors of 512 bytes that are written whole or not at all:

- what was synced when a sync began is there after it returned; so is a write through O_DSYNC after it returned;
- what a sync that failed should have written may never be there, and no later sync tries again (the kernel drops it);
- any other write may be there or not, sector by sector, whatever the order in which they were made, and in between a
  sector may hold any of the contents that it had since it was last durable;
- a file's size is as durable as its bytes, and chosen apart from them; bytes that never arrived read as zeros;
- a name that was created, renamed or removed may be as before or as after, name by name, until its folder is synced;
- the content of LMDB's lock files is anything, since it is shared memory that nobody syncs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SECTOR_BYTES = 512
_HEADER = struct.Struct("<BBHIQQIII")
_FLAG_DURABLE = 1
_FLAG_FAILED = 2
_NEVER = 1 << 62


class Kind(IntEnum):
    """What an operation does; the numbers of the recorder."""

    CREATE = 1
    MKDIR = 2
    WRITE = 3
    TRUNCATE = 4
    SYNC = 5
    RENAME = 6
    UNLINK = 7
    LINK = 8
    MARK = 9


@dataclass(frozen=True, slots=True)
class Operation:
    """One recorded operation. `started`: how many operations were complete when it began."""

    kind: Kind
    flags: int
    inode: int
    offset: int
    started: int
    path: str
    data: bytes

    @property
    def durable(self) -> bool:
        """Whether it is a write that is on the disk when it returns."""
        return self.kind is Kind.WRITE and bool(self.flags & _FLAG_DURABLE)


def read_trace(path: Path) -> list[Operation]:
    """Return the operations of a trace."""
    content, at, operations = path.read_bytes(), 0, []
    while at < len(content):
        kind, flags, _, _, inode, offset, started, path_bytes, data_bytes = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        name = content[at : at + path_bytes].decode()
        data = content[at + path_bytes : at + path_bytes + data_bytes]
        at += path_bytes + data_bytes
        operations.append(Operation(Kind(kind), flags, inode, offset, started, name, data))
    return operations


@dataclass(slots=True)
class Node:
    """A file: what is durable, what the process sees, and every content in between, sector by sector."""

    current: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    sectors: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def write(self, moment: int, offset: int, data: bytes) -> None:
        """Write without a sync."""
        end = offset + len(data)
        if end > len(self.current):
            self.resize(moment, end)
        self.current[offset:end] = data
        for sector in _sectors(offset, end):
            self.sectors.setdefault(sector, []).append((moment, self._sector(sector)))

    def resize(self, moment: int, size: int) -> None:
        """Grow with zeros, or cut."""
        if size < len(self.current):
            del self.current[size:]
        else:
            self.current.extend(bytes(size - len(self.current)))
        self.sizes.append((moment, size))

    def settle(self, offset: int, size: int) -> None:
        """Make durable what a write through to the disk has written: its sectors, and the file's length up to it."""
        end = offset + size
        for sector in _sectors(offset, end):
            _put(self.durable, sector, self.sectors.pop(sector)[-1][1])
        if len(self.durable) < end:
            self.durable.extend(bytes(end - len(self.durable)))
        self.sizes = [(when, bigger) for when, bigger in self.sizes if bigger > end]

    def sync(self, started: int) -> None:
        """Make durable what was there when the sync began."""
        for sector, versions in list(self.sectors.items()):
            done = _count_before(versions, started)
            if done:
                _put(self.durable, sector, versions[done - 1][1])
                self.sectors[sector] = versions[done:]
                if not self.sectors[sector]:
                    del self.sectors[sector]
        done = _count_before(self.sizes, started)
        if done:
            _resize(self.durable, self.sizes[done - 1][1])
            self.sizes = self.sizes[done:]

    def sync_failed(self) -> None:
        """Let everything that is not durable now stay so until it is written again."""
        for sector, versions in self.sectors.items():
            self.sectors[sector] = [(_NEVER, content) for _, content in versions]
        self.sizes = [(_NEVER, size) for _, size in self.sizes]

    @property
    def pending(self) -> int:
        """How many sectors and sizes are not settled."""
        return len(self.sectors) + len(self.sizes)

    def draw(self, pick: random.Random) -> bytes:
        """Return one content that the disk may hold."""
        if not self.pending:
            return bytes(self.durable)
        keep = pick.choice((0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0))
        # The newest write reached the disk before older ones, or the older ones before it: half of the states each.
        until = pick.choice([when for versions in self.sectors.values() for when, _ in versions] or [0])
        prefix = pick.random() < 0.5
        content = bytearray(self.durable)
        for sector, versions in self.sectors.items():
            choices = [version for when, version in versions if not prefix or when <= until]
            if choices and (pick.random() < keep or prefix):
                _put(content, sector, pick.choice(choices) if pick.random() < 0.2 else choices[-1])
        sizes = [len(self.durable), *(size for _, size in self.sizes)]
        _resize(content, sizes[-1] if pick.random() < 0.5 else pick.choice(sizes))
        return bytes(content)

    def _sector(self, sector: int) -> bytes:
        return bytes(self.current[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES])


def _count_before(versions: Sequence[tuple[int, object]], started: int) -> int:
    """Return how many versions, the oldest ones, are replaced or made durable by a sync that began then."""
    return max((at + 1 for at, (when, _) in enumerate(versions) if when < started), default=0)


def _sectors(offset: int, end: int) -> range:
    return range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES))


def _put(content: bytearray, sector: int, version: bytes) -> None:
    at = sector * SECTOR_BYTES
    if len(content) < at + len(version):
        content.extend(bytes(at + len(version) - len(content)))
    content[at : at + len(version)] = version


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


@dataclass(frozen=True, slots=True)
class Change:
    """A change of names in one folder that is not durable yet: `name` leads to `node` now; `old` leads nowhere."""

    moment: int
    folder: str
    name: str
    node: Node | None
    old: str | None = None


class Disk:
    """A tree of files as one process writes it.

    Attributes:
        moment: how many operations were applied.
        marks: (kind, value) of the marks so far.
    """

    def __init__(self) -> None:
        self.moment = 0
        self.marks: list[tuple[int, int]] = []
        self._by_inode: dict[int, Node] = {}
        self._folders: dict[int, str] = {0: ""}
        self._names: dict[str, Node | None] = {}
        self._changes: list[Change] = []
        self._begun = False

    def begin(self, operation: Operation) -> None:
        """Let the next operation, a durable write, have begun but not returned; `apply` completes it."""
        self._by_inode[operation.inode].write(self.moment, operation.offset, operation.data)
        self._begun = True

    def apply(self, operation: Operation) -> None:
        """Apply the next operation."""
        match operation.kind:
            case Kind.WRITE:
                if not self._begun:
                    self.begin(operation)
                self._begun = False
                if operation.durable:
                    self._by_inode[operation.inode].settle(operation.offset, len(operation.data))
            case Kind.TRUNCATE:
                self._by_inode[operation.inode].resize(self.moment, operation.offset)
            case Kind.SYNC:
                self._sync(operation)
            case Kind.MARK:
                self.marks.append((operation.flags, operation.offset))
            case _:
                self._rename(operation)
        self.moment += 1

    def _rename(self, operation: Operation) -> None:
        """Apply a change of names."""
        folder, path = _folder(operation.path), operation.path
        if operation.kind is Kind.MKDIR:
            self._folders[operation.inode] = path
            self._changes.append(Change(self.moment, folder, path + "/", None))
        elif operation.kind is Kind.CREATE:
            node = self._by_inode[operation.inode] = Node()
            self._changes.append(Change(self.moment, folder, path, node))
        elif operation.kind is Kind.UNLINK:
            self._changes.append(Change(self.moment, folder, path, None, old=path))
        else:
            new = operation.data.decode()
            assert _folder(new) == folder, "renames across folders are not modelled"
            old = path if operation.kind is Kind.RENAME else None
            self._changes.append(Change(self.moment, folder, new, self._by_inode[operation.inode], old))

    def _sync(self, operation: Operation) -> None:
        if operation.inode not in self._folders:
            node = self._by_inode[operation.inode]
            if operation.flags & _FLAG_FAILED:
                node.sync_failed()
            else:
                node.sync(operation.started)
            return
        folder = self._folders[operation.inode]
        done = [change for change in self._changes if change.folder == folder and change.moment < operation.started]
        _change_names(self._names, done)
        self._changes = [change for change in self._changes if change not in done]

    def pending(self) -> int:
        """Return how many sectors, sizes and names are not settled."""
        nodes = {id(node): node for node in self._by_inode.values()}
        return len(self._changes) + sum(node.pending for node in nodes.values())

    def draw(self, pick: random.Random) -> dict[str, bytes | None]:
        """Return one tree that the disk may hold after a loss of power now: contents by path, None for a folder."""
        names = dict(self._names)
        _change_names(names, list(self._some_changes(pick)))
        tree: dict[str, bytes | None] = {}
        for name in sorted(names, key=lambda name: name.rstrip("/").count("/")):
            folder = _folder(name.rstrip("/"))
            if folder and folder not in tree:
                continue
            node = names[name]
            if node is None:
                tree[name.rstrip("/")] = None
            elif name.endswith("-lock"):
                tree[name] = pick.choice((b"", bytes(100), bytes(len(node.current)), pick.randbytes(300)))
            else:
                tree[name] = node.draw(pick)
        return tree

    def _some_changes(self, pick: random.Random) -> Iterator[Change]:
        keep = pick.choice((0.0, 0.5, 1.0, 1.0))
        for change in self._changes:
            if pick.random() < keep:
                yield change


def _change_names(names: dict[str, Node | None], changes: list[Change]) -> None:
    for change in changes:
        if change.old is not None:
            names.pop(change.old, None)
        if change.node is not None or change.name.endswith("/"):
            names[change.name] = change.node


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
