"""Backups: a consistent copy of a journal beside its commits, and the way back.

    <backup>/journal/*.seg          sealed segments byte by byte; the groups of the others, in files of their own
    <backup>/archive/archive.mdb    one snapshot, when there is an archive
    <backup>/backup.json            what all of it is, written last: without it there is no backup

The copy has no `format` file, so it cannot be served by mistake: what is published to it would give positions away that
the original has given to other messages. `restore` makes a directory of it whose journal has an identity of its own
and notes the run, so that every channel begins a new epoch with its next message (`Directory.restored_run`).

Segments are copied, never linked: a link would share the fate of the bytes that it is to replace.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Protocol

import lmdb

from broker._version import __version__
from broker.log import durable
from broker.log.archive_rows import CHECKPOINT_KEY, Checkpoint
from broker.log.archive_task import ARCHIVE_FOLDER, ARCHIVE_NAME
from broker.log.directory import FORMAT, write_identity, write_restored
from broker.log.environment import close_shared, create_file, open_lmdb, open_shared
from broker.log.errors import corrupt, failed
from broker.log.segment import Link, group_key
from broker.model.errors import StorageError, error
from broker_native.index import GroupDamaged, check_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from broker.log.directory import Directory
    from broker.log.segment import Segment

    Between = Callable[[int, int], None]

MANIFEST = "backup.json"
MANIFEST_FORMAT = 1
PIECE_BYTES = 4 * 1024 * 1024
ARCHIVE = f"{ARCHIVE_FOLDER}/{ARCHIVE_NAME}"
ARCHIVE_MAP_BYTES = 1 << 42
OVERTAKEN_MAX = 5
"""How often the archive may overtake the look at it or at the segments; it takes one segment in about a second."""
_PAGE_BYTES_AT, _LAST_PAGE_AT, _TRANSACTION_AT, _META_BYTES = 40, 136, 144, 152
_NAME = re.compile(rf"journal/[0-9a-f]{{16}}\.seg|{re.escape(ARCHIVE)}")
RUNS_SKIPPED_MIN, RUNS_SKIPPED_SPREAD = 1 << 10, 1 << 16
"""How far a restored journal's runs are past the backup's. The original may have begun many since, and so may others
that were restored from the same backup: an epoch is (run, group), and theirs must not meet. Of 2^24 runs there are."""


class Source(Protocol):
    """What is copied, from its beginning to its end."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes, none at the end."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup is.

    Attributes:
        format: of this record.
        data_format: of the files.
        journal: the identity of the journal that it is of, in hex.
        group, chain, run, time_us: of its last group, 0 when there is none.
        version: of the broker that took it.
        files: name from the backup on → (size in bytes, SHA-256 in hex).
    """

    format: int
    data_format: int
    journal: str
    group: int
    chain: int
    run: int
    time_us: int
    version: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Return the manifest file's content, which ends with a checksum of all before it."""
        body = json.dumps(asdict(self), indent=1, sort_keys=True)
        return f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n".encode()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a backup.

        Raises:
            StorageError: STORAGE_FORMAT when there is none or a newer version wrote it, STORAGE_CORRUPT when it is
                damaged, STORAGE_FAILED.
        """
        path = folder / MANIFEST
        try:
            body, _, check = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
        except FileNotFoundError:
            hint = "A backup that was cut short has none: take it again."
            raise error("STORAGE_FORMAT", f"{folder}: not a whole backup: it has no {MANIFEST}", hint) from None
        except OSError as cause:
            raise failed(path, cause) from cause
        if hashlib.sha256(body).hexdigest().encode() != check:
            raise corrupt(path, "its checksum is wrong")
        fields = json.loads(body)
        if fields["format"] != MANIFEST_FORMAT or fields["data_format"] > FORMAT:
            got = f"got formats {fields['format']} and {fields['data_format']}"
            raise error("STORAGE_FORMAT", f"{path}: {got}, this version knows {MANIFEST_FORMAT} and {FORMAT}")
        strange = [name for name in fields["files"] if not _NAME.fullmatch(name)]
        if strange:
            raise error("STORAGE_FORMAT", f"{path}: got a file {strange[0]!r}, which no backup has")
        files = {name: (size, digest) for name, (size, digest) in fields.pop("files").items()}
        return cls(**fields, files=files)


class Copier:
    """Copies into a folder, remembers what it wrote, and takes it away again when it does not come to an end.

    Args:
        target: missing or empty.
        total: bytes that will be copied, about.
        between: as of `take_backup`.
    """

    def __init__(self, target: Path, total: int, between: Between) -> None:
        self.files: dict[str, tuple[int, str]] = {}
        self._target = target
        self._total = total
        self._between = between
        self._done = 0
        self._made = not target.exists()

    def __enter__(self) -> Copier:
        if not self._made and (not self._target.is_dir() or any(self._target.iterdir())):
            hint = "Name a folder that is missing or empty; nothing in this one was touched."
            raise error("STORAGE_FORMAT", f"{self._target}: is not an empty folder", hint)
        if self._made:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            durable.make_folder(self._target)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            return
        for entry in self._target.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        if self._made:
            self._target.rmdir()

    def folder(self, name: str) -> Path:
        """Make a folder of the copy."""
        durable.make_folder(self._target / name)
        return self._target / name

    def advance(self, size: int) -> None:
        """Count bytes, and let others have their turn."""
        self._done += size
        self._between(min(self._done, self._total), self._total)

    def copy(self, source: Source, name: str, expected: tuple[int, str] | None = None) -> None:
        """Copy an open file from its beginning, synced.

        Args:
            source: read to its end.
            name: from the target on.
            expected: its size and digest, if they are known.

        Raises:
            StorageError: STORAGE_CORRUPT; it is not what was expected. OSError.
        """
        digest, size = hashlib.sha256(), 0
        path = self._target / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, durable.FILE_MODE)
        with os.fdopen(descriptor, "wb", buffering=0) as target:
            while piece := source.read(PIECE_BYTES):
                view = memoryview(piece)
                while view:
                    view = view[target.write(view) :]
                digest.update(piece)
                size += len(piece)
                self.advance(len(piece))
            durable.sync_descriptor(target.fileno())
        self.files[name] = (size, digest.hexdigest())
        if expected is not None and expected != self.files[name]:
            raise corrupt(path, f"the backup's file is not what was backed up: {size} bytes, expected {expected[0]}")

    def note(self, name: str) -> None:
        """Remember a file that was written otherwise."""
        digest, size = digest_of(self._target / name)
        self.files[name] = (size, digest)


def digest_of(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file in hex, and its size in bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def take_backup(
    directory: Directory,
    segments: Callable[[], tuple[Segment, ...]],
    target: Path,
    map_bytes: int,
    between: Between,
) -> Manifest:
    """Copy a journal that may be appended to meanwhile, up to the last good group of the moment.

    Args:
        directory: the data directory, owned by this process.
        segments: returns the journal's segments, the active one last.
        target: a folder that is missing or empty; on failure it is left so.
        map_bytes: the address space that a segment may need.
        between: called with (bytes done, bytes in all) between small steps: pace and progress; what it raises ends it.

    Returns:
        What was written as the manifest.

    Raises:
        StorageError: STORAGE_FORMAT when the target is not empty, STORAGE_FULL, STORAGE_FAILED, STORAGE_CORRUPT when a
            group that was to be copied is damaged.
    """
    try:
        return _take_backup(directory, segments, target, map_bytes, between)
    except (OSError, lmdb.Error) as cause:
        raise failed(target, cause) from cause


def _take_backup(
    directory: Directory, segments: Callable[[], tuple[Segment, ...]], target: Path, map_bytes: int, between: Between
) -> Manifest:
    for _ in range(OVERTAKEN_MAX):
        with ExitStack() as stack:
            taken = segments()
            # Open from here on, a sealed segment can be read to its end even when it is archived and its name goes.
            sealed: dict[Segment, BinaryIO] = {}
            try:
                for each in taken:
                    if each.sealed:
                        sealed[each] = stack.enter_context(each.path.open("rb", buffering=0))
            except FileNotFoundError:
                continue  # archived since the look at the segments: look again
            archive = stack.enter_context(ArchiveCopy.begin(directory.archive_path))
            if archive.ordinal < taken[-1].ordinal:
                rest = [each for each in taken if each.ordinal > archive.ordinal]
                try:
                    return _copy_all(directory, archive, rest, sealed, target, map_bytes, between)
                except (StorageError, OSError):
                    if not any(each.gone for each in rest if each not in sealed):
                        raise
    raise error("BUSY", f"{directory.path}: got {OVERTAKEN_MAX} archived segments meanwhile, which overtook the copy")


def _copy_all(
    directory: Directory,
    archive: ArchiveCopy,
    segments: list[Segment],
    sealed: dict[Segment, BinaryIO],
    target: Path,
    map_bytes: int,
    between: Between,
) -> Manifest:
    """Copy the archive as it was, and what follows it, the active segment up to its last good group of now.

    What is not sealed is copied first: by the time that an archive takes it may be sealed, archived and removed.
    """
    total = archive.size + sum(os.fstat(sealed[each].fileno()).st_size if each in sealed else each.bytes
                               for each in segments)  # fmt: skip
    with Copier(target, total, between) as copier:
        # First: what has the beginning of a manifest passes for no data directory, however little is there.
        (target / (MANIFEST + durable.ASIDE_SUFFIX)).touch(durable.FILE_MODE)
        folder = copier.folder("journal")
        last = archive.last
        for segment in segments:
            if segment in sealed:
                last = segment.last
            elif not segment.empty:
                last = _copy_groups(segment, folder / segment.path.name, map_bytes, copier)
                copier.note(f"journal/{segment.path.name}")
        if archive.size:
            durable.sync_path(copier.folder(ARCHIVE_FOLDER))
            copier.copy(archive, ARCHIVE)
            durable.sync_path(target / ARCHIVE_FOLDER)
        for segment in segments:
            if segment in sealed:
                copier.copy(sealed[segment], f"journal/{segment.path.name}")
        durable.sync_path(folder)
        manifest = Manifest(
            format=MANIFEST_FORMAT, data_format=FORMAT, journal=directory.journal_id.hex(), group=last.number,
            chain=last.chain, run=last.run, time_us=last.time_us, version=__version__, files=copier.files,
        )  # fmt: skip
        durable.write_file(target / MANIFEST, manifest.pack())
    return manifest


class ArchiveCopy:
    """The bytes of an archive as one read transaction sees it, page by page, while others write to it.

    The pages of the snapshot stay as they are for as long as it is held; others may change under the copy, and nothing
    leads to them. Of the two meta pages the snapshot's is given for both, the other with the number before it, so that
    whoever opens the copy takes this one.

    Attributes:
        size: bytes of the copy, 0 when there is no archive.
        ordinal: the last segment that is in it, 0 for none.
        last: the last group that is in it.
    """

    def __init__(self) -> None:
        self.size = self.ordinal = 0
        self.last = Link()
        self._at = 0
        self._metas = b""
        self._file: BinaryIO | None = None

    @classmethod
    @contextmanager
    def begin(cls, path: Path) -> Iterator[ArchiveCopy]:
        """Hold a snapshot of an archive, or of none."""
        copy = cls()
        if not path.exists():
            yield copy
            return
        environment = open_shared(path, ARCHIVE_MAP_BYTES)
        try:
            with path.open("rb", buffering=0) as copy._file:
                for _ in range(OVERTAKEN_MAX):
                    with environment.begin(buffers=True) as transaction:
                        if not copy._find_meta(path, transaction.id()):
                            continue  # committed to twice since: its meta page is another one's now
                        value = transaction.get(CHECKPOINT_KEY)
                        found = Checkpoint.unpack(bytes(value) if value is not None else None, path)
                        copy.ordinal = found.ordinal
                        copy.last = Link(
                            found.group, found.chain, found.time_us, found.term, found.run, found.closed_run
                        )
                        yield copy
                        return
        finally:
            close_shared(path)
        raise error("BUSY", f"{path}: got {OVERTAKEN_MAX} pairs of commits meanwhile, each of which overtook the copy")

    def _find_meta(self, path: Path, transaction: int) -> bool:
        """Take the meta page of a transaction for both; tell whether it is still there."""
        with path.open("rb") as file:
            page_bytes = int.from_bytes(file.read(_META_BYTES)[_PAGE_BYTES_AT : _PAGE_BYTES_AT + 4], "little")
            for slot in (0, 1):
                file.seek(slot * page_bytes)
                page = file.read(page_bytes)
                if int.from_bytes(page[_TRANSACTION_AT : _TRANSACTION_AT + 8], "little") == transaction:
                    older = (
                        page[:_TRANSACTION_AT] + (transaction - 1).to_bytes(8, "little") + page[_TRANSACTION_AT + 8 :]
                    )
                    metas = [page, older] if transaction % 2 == 0 else [older, page]
                    # Each page says its own number.
                    self._metas = b"".join(at.to_bytes(8, "little") + each[8:] for at, each in enumerate(metas))
                    pages = int.from_bytes(page[_LAST_PAGE_AT : _LAST_PAGE_AT + 8], "little") + 1
                    self.size = pages * page_bytes
                    return True
        return False

    def read(self, size: int) -> bytes:
        """Return the next bytes, none at the end; as of a file."""
        assert self._file is not None
        size = min(size, self.size - self._at)
        if self._at < len(self._metas):
            piece = self._metas[self._at : self._at + size]
        else:
            self._file.seek(self._at)
            piece = self._file.read(size)
        self._at += len(piece)
        return piece


def _copy_groups(segment: Segment, path: Path, map_bytes: int, copier: Copier) -> Link:
    """Copy the good groups of a segment that may be appended to; return the place after the last one."""
    last = Link()
    create_file(path, map_bytes)
    environment = open_lmdb(path, map_bytes, locks=False)
    try:
        for batch in _batches(segment):
            with environment.begin(write=True) as transaction:
                for number, value in batch:
                    try:
                        last = Link.after(check_group(value))
                    except GroupDamaged as damage:
                        raise corrupt(segment.path, f"group {number}: {damage.reason} is wrong") from damage
                    transaction.put(group_key(number), value, append=True)
            copier.advance(sum(len(value) for _, value in batch))
    finally:
        environment.close()
    durable.sync_path(path)
    return last


def _batches(segment: Segment) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the groups that a segment has at this moment, about `PIECE_BYTES` at a time, each read in one go."""
    number, end = segment.first, segment.last.number
    while number <= end:
        batch: list[tuple[int, bytes]] = []
        size = 0
        with segment.file.reading() as transaction:
            for found, value in segment.groups_from(transaction, number):
                if found > end or size >= PIECE_BYTES:
                    break
                batch.append((found, bytes(value)))
                size += len(value)
        if not batch:
            return
        yield batch
        number = batch[-1][0] + 1


def restore(backup: Path, path: Path, between: Between) -> Manifest:
    """Make a data directory of a backup, with an identity of its own and new epochs to come.

    Args:
        backup: a backup, of this format or an older one; each file is proved against the manifest while it is copied.
        path: a folder that is missing or empty; on failure it is left so, and after a kill it does not open.
        between: as of `take_backup`.

    Returns:
        The backup's manifest.

    Raises:
        StorageError: STORAGE_FORMAT, STORAGE_CORRUPT, STORAGE_FULL, STORAGE_FAILED.
    """
    manifest = Manifest.read(backup)
    total = sum(size for size, _ in manifest.files.values())
    try:
        with Copier(path, total, between) as copier:
            # First: a folder with this note and without a format file is nobody's data directory.
            write_restored(path, manifest.run + RUNS_SKIPPED_MIN + secrets.randbelow(RUNS_SKIPPED_SPREAD))
            for folder in {"journal", *(name.partition("/")[0] for name in manifest.files)}:
                copier.folder(folder)
            for name, expected in sorted(manifest.files.items()):
                with (backup / name).open("rb", buffering=0) as source:
                    copier.copy(source, name, expected)
                durable.sync_path((path / name).parent)
            write_identity(path, manifest.data_format, secrets.token_bytes(16))
    except OSError as cause:
        raise failed(path, cause) from cause
    return manifest
