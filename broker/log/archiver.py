"""The archive's writer: takes slices of sealed segments in, and rebuilds the file without what it lost.

Run as `python -m broker.log.archiver --data PATH` it is the child process of a server: it takes commands as JSON lines
on its standard input and answers on its standard output (see `serve`), so its work takes no interpreter lock from the
server's loop and its death loses nothing. Embedded, `ArchiveWriter` runs on a thread.

Every transaction is fully synced, and bounded in what it writes. A kill at any moment leaves the archive as some
transaction left it, and a slice that was cut short is repeated: it ends at the same rows. A rebuild is a file of its
own until it is whole and synced and takes the archive's name. The writer removes nothing else: the segments that are
archived are their owner's.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import gc
import json
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import lmdb

from broker.log import durable
from broker.log.archive import create_archive
from broker.log.archive_rows import CHECKPOINT_KEY, Checkpoint
from broker.log.archive_task import TIME_MAX_US, CompactResult, Stopped, archive_path, aside_path
from broker.log.environment import check_file, close_shared, lock_path, open_shared, remove_file
from broker.log.errors import corrupt, failed
from broker.log.rebuild import rebuild
from broker.log.retaining import retain
from broker.log.retention import NOTHING_HELD, Held, Policies, unpack_cursors
from broker.log.segment import Segment, open_segment
from broker.log.slice import SLICE_KEY, Begun, Slice, SliceSegment
from broker.model.errors import BrokerError, error
from broker_native.btree import TreeDamaged
from broker_native.tree import MappedFile, TreeReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.log.retention import Step

__all__ = ["ArchiveWriter", "CompactResult", "Stopped", "archive_path", "aside_path", "main", "serve"]

MIB = 1024 * 1024
TRANSACTION_BYTES = 16 * MIB
MAP_BYTES = 1 << 42
"""Address space, which costs nothing; a system that refuses is asked for less."""
MAP_BYTES_MIN = 1 << 30
NICENESS = 5
"""Of the child process: behind the server's threads, and still a seventh of two processors that others use wholly. At
10 it was a twentieth, less than any sustained load needs."""
_PR_SET_PDEATHSIG = 1


class ArchiveWriter:
    """Writes an archive that this process owns; one thread.

    Attributes:
        checkpoint: how far the archive goes.
        begun_ordinal: a slice that was cut short goes up to this segment, and the next one must go as far; 0 for none.
        written_bytes: about how many bytes of pages it has written.
        progress: how much of the slice that is being written is in, 0.0 to 1.0.
        cpu_s: always 0: what it uses is in its process's own books.
    """

    cpu_s = 0.0

    def __init__(
        self,
        path: Path,
        open_segment: Callable[[Path], Segment] = open_segment,
        *,
        map_bytes: int = MAP_BYTES,
        transaction_bytes: int = TRANSACTION_BYTES,
    ) -> None:
        """Take the archive over, creating it if it is missing.

        Args:
            path: the archive's file; its folder is created, too.
            open_segment: gives a sealed segment by its path.
            map_bytes: the address space to begin with; it grows when it is used up.
            transaction_bytes: about how many bytes of pages one transaction writes.

        Raises:
            StorageError: STORAGE_IN_USE naming the owner; STORAGE_CORRUPT, STORAGE_FORMAT, STORAGE_FULL or
                STORAGE_FAILED.
        """
        self.path = path
        self._open_segment = open_segment
        self._transaction_bytes = transaction_bytes
        self._map_bytes = map_bytes
        self._opened: tuple[lmdb.Environment, MappedFile] | None = None
        self.written_bytes = 0
        self.progress = 0.0
        self._lock: int | None = None
        try:
            if not path.parent.exists():
                durable.make_folder(path.parent)
            self._lock = _lock(path.parent)
            remove_file(aside_path(path))
            if not path.exists():
                create_archive(path)
            self.checkpoint, self._begun = self._load()
        except BaseException as cause:
            self.close()
            if isinstance(cause, OSError):
                raise failed(path, cause) from cause
            raise

    @property
    def begun_ordinal(self) -> int:
        """The last segment of a slice that was cut short, 0 when none was."""
        return self._begun.ordinal if self._begun is not None else 0

    def archive(self, segments: list[Path], between: Callable[[], None]) -> Checkpoint:
        """Take a slice in; all of it is durable on return.

        Args:
            segments: consecutive sealed segments, the first one right behind the checkpoint.
            between: called between transactions; what it raises ends the slice there, to be repeated later.

        Returns:
            The new checkpoint.

        Raises:
            StorageError: STORAGE_CORRUPT naming file, channel and group; STORAGE_FULL or STORAGE_FAILED. The archive
                is as the last transaction left it; the same slice may be tried again.
            ValueError: the slice ends before `begun_ordinal`.
        """
        with ExitStack() as files:
            opened = [SliceSegment(self._open_segment(path), files) for path in segments]
            work = Slice(self.path, opened, self.checkpoint, self._begun, self._transaction_bytes)
            while True:
                found = self._commit(work)
                self.progress = work.progress
                if found is not None:
                    self.checkpoint, self._begun = found, None
                    return found
                between()

    def compact(self, between: Callable[[], None], now_us: int = TIME_MAX_US) -> CompactResult:
        """Put a rebuilt file in the archive's place, without free pages, trimmed and expired records.

        Readers go on in the former file until they open the archive again (`Archive.reopen`). Those of this process
        do so before this writer is used again.

        Args:
            between: as of `archive`; what it raises ends the rebuild, and the archive is as it was.
            now_us: the time by which ages are judged, microseconds since 1970; no more has expired.

        Raises:
            StorageError: STORAGE_CORRUPT naming what is damaged; STORAGE_FULL or STORAGE_FAILED. The archive is as it
                was.
            BrokerError: UNAVAILABLE while a slice is on its way (`begun_ordinal`): what it added is not in the totals.
        """
        if self._begun is not None:
            raise error("UNAVAILABLE", f"{self.path}: the slice up to segment {self._begun.ordinal} is on its way")
        environment, mapped = self._open()
        aside = aside_path(self.path)
        try:
            reader = TreeReader(mapped, int(environment.info()["last_txnid"]))
            before = self.path.stat().st_size
            checkpoint = rebuild(self.path, aside, reader, self.checkpoint, self._transaction_bytes, between, now_us)
            after = aside.stat().st_size
            durable.sync_path(aside)
            self._shut()
            durable.adopt_file(aside, self.path)
            # LMDB's lock file says which of a file's two meta pages is the newer one: this file's is another one.
            durable.remove_file(lock_path(self.path))
        except (OSError, lmdb.Error) as cause:
            with suppress(OSError):
                remove_file(aside)
            raise failed(self.path, cause) from cause
        self.checkpoint = checkpoint
        return CompactResult(before, after)

    def retain(self, policies: Policies, cursors: Mapping[bytes, int], now_us: int, held: Held = NOTHING_HELD) -> Step:
        """Take one step of retention, in one transaction.

        Args:
            policies: of the channels.
            cursors: of the last step, if all its proposals are trims in the journal; else empty.
            now_us: the time by which ages are judged, microseconds since 1970.
            held: what of earlier steps consumers hold.

        Returns:
            What to trim, and the cursors to pass on when that is done.

        Raises:
            StorageError: STORAGE_CORRUPT, STORAGE_FULL or STORAGE_FAILED; the archive is as it was. Unavailable: a
                slice was cut short, and has to be archived first.
        """
        if self._begun is not None:
            raise error("UNAVAILABLE", f"{self.path}: a slice of segments is not wholly in it")
        environment, mapped = self._open()
        try:
            with environment.begin(write=True) as transaction:
                reader = TreeReader(mapped, transaction.id() - 1)
                step = retain(self.path, transaction, reader, policies, cursors, now_us, held)
                checkpoint = Checkpoint.unpack(transaction.get(CHECKPOINT_KEY), self.path)
        except lmdb.Error as cause:
            self._shut()
            if isinstance(cause, lmdb.MapFullError):
                self._map_bytes *= 2
            raise failed(self.path, cause) from cause
        self.checkpoint = checkpoint
        return step

    def close(self) -> None:
        """Close the file and give the archive up. Idempotent."""
        self._shut()
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def _commit(self, work: Slice) -> Checkpoint | None:
        """Make one transaction of a slice durable."""
        environment, mapped = self._open()
        try:
            transaction = environment.begin(write=True)
            try:
                found = work.step(transaction, TreeReader(mapped, transaction.id() - 1))
                transaction.commit()
            finally:
                # After a commit, good or bad, there is nothing left to abort, and this does nothing.
                transaction.abort()
        except lmdb.Error as cause:
            # After a failed sync LMDB would go on as if nothing had happened; opened again, the file reads as it is.
            self._shut()
            if isinstance(cause, lmdb.MapFullError):
                self._map_bytes *= 2
            raise failed(self.path, cause) from cause
        # From the first transaction on the slice is in the file, and has to be gone through with.
        self._begun = work.begun
        self.written_bytes += work.dirty_bytes
        return found

    def _load(self) -> tuple[Checkpoint, Begun | None]:
        environment, mapped = self._open()
        try:
            # A process that was killed inside a commit may have left a meta page that is seen but not on the disk.
            environment.sync(True)
            newest = int(environment.info()["last_txnid"])
            checkpoint, begun = TreeReader(mapped, newest).get_sorted([CHECKPOINT_KEY, SLICE_KEY])
        except TreeDamaged as damage:
            raise corrupt(self.path, str(damage)) from damage
        except lmdb.Error as cause:
            raise failed(self.path, cause) from cause
        return Checkpoint.unpack(checkpoint, self.path), None if begun is None else Begun.unpack(begun, self.path)

    def _open(self) -> tuple[lmdb.Environment, MappedFile]:
        """Open the file if it is not: the first user does, and the next one after a failure or a rebuild."""
        if self._opened is None:
            check_file(self.path)
            while True:
                try:
                    environment = open_shared(self.path, self._map_bytes)
                except (lmdb.Error, OSError, OverflowError) as cause:
                    if self._map_bytes <= MAP_BYTES_MIN:
                        raise failed(self.path, cause) from cause
                    self._map_bytes //= 2
                else:
                    break
            try:
                self._opened = environment, MappedFile(str(self.path), self._map_bytes)
            except OSError as cause:
                close_shared(self.path)
                raise failed(self.path, cause) from cause
        return self._opened

    def _shut(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None
            close_shared(self.path)


def _lock(folder: Path) -> int:
    """Take the lock of the archive's writer, and write the owner's name into it."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, durable.FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(descriptor, 256, 0).decode("utf-8", "replace").strip() or "a process that is just starting"
        os.close(descriptor)
        raise error("STORAGE_IN_USE", f"{folder}: the archive's writer is {owner}") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


# --- The child process ----------------------------------------------------------------------------------------------


def serve(writer: ArchiveWriter, commands: TextIO, answers: TextIO) -> None:
    """Obey the owner until its end of the pipe is closed.

    One JSON object a line. First of all comes `{"state": "ready", "checkpoint": {…}, "begun": ordinal}`. A command is
    `{"do": "archive", "segments": [path, …]}`, `{"do": "retain", …}` or `{"do": "compact", "now_us": time}`. After each
    transaction of a slice or a rebuild `{"state": "step", "bytes": written, "progress": of the slice}` is said, and
    the owner's `{"do": "go"}` or `{"do": "stop"}` awaited: so it sets the pace. At the end comes `{"state": "archived",
    "checkpoint": {…}}`, `{"state": "retained", …}`, `{"state": "compacted", …}`, `{"state": "stopped"}` or `{"state":
    "failed", "code": …, "detail": …}`. Each answer says in `cpu_s` what the process has used.
    """

    def say(state: str, **fields: Any) -> None:
        answers.write(json.dumps({"state": state, "cpu_s": time.process_time(), **fields}) + "\n")
        answers.flush()

    def between() -> None:
        say("step", bytes=writer.written_bytes, progress=writer.progress)
        line = commands.readline()
        if not line or json.loads(line)["do"] != "go":
            raise Stopped

    say("ready", checkpoint=asdict(writer.checkpoint), begun=writer.begun_ordinal)
    for line in iter(commands.readline, ""):
        command = json.loads(line)
        try:
            if command["do"] == "archive":
                checkpoint = writer.archive([Path(path) for path in command["segments"]], between)
                say("archived", checkpoint=asdict(checkpoint), bytes=writer.written_bytes)
            elif command["do"] == "retain":
                policies, cursors = Policies.unpack(command["policies"]), unpack_cursors(command["cursors"])
                held = Held.unpack(command["held"])
                say("retained", **writer.retain(policies, cursors, command["now_us"], held).pack())
            elif command["do"] == "compact":
                say("compacted", **asdict(writer.compact(between, command["now_us"])))
            else:
                raise ValueError(f"no such command: {command['do']}")
        except Stopped:
            say("stopped")
        except BrokerError as failure:
            say("failed", code=failure.code, detail=failure.detail)


def _follow_parent() -> None:
    """End when the parent does, however it ends, and leave the terminal's interrupt to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(0)


def main(arguments: list[str]) -> int:
    """Run the child process; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m broker.log.archiver", description="Write a server's archive.")
    parser.add_argument("--data", type=Path, required=True, help="the data directory")
    parser.add_argument("--transaction-bytes", type=int, default=TRANSACTION_BYTES, help="of pages, about")
    options = parser.parse_args(arguments)
    _follow_parent()
    with suppress(OSError):
        os.nice(NICENESS)
    try:
        writer = ArchiveWriter(archive_path(options.data), transaction_bytes=options.transaction_bytes)
    except BrokerError as failure:
        answer = {"state": "failed", "cpu_s": time.process_time(), "code": failure.code, "detail": failure.detail}
        print(json.dumps(answer), flush=True)
        return 1
    # What was imported stays: the collector need not look at it again for each thousand rows.
    gc.freeze()
    try:
        serve(writer, sys.stdin, sys.stdout)
    except BrokenPipeError:
        # The owner is gone; what it began is repeated by the next one.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
