"""Bits that flip in a journal and its archive at rest: every one is an error that says where, or changes nothing.

A small journal is made, with an archive, sealed segments and an active one. Again and again one bit anywhere in its
files flips, then it is verified, a log opens it, replays it, reads all of it in both orders, and the bit flips back.
Bytes that are not what was written, a process that dies, and a fault of the log that the verification has not named,
are what must never be.

`python -m tests.fault.flips` flips 10,000 bits on every core and prints the figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from broker.log.archiver import ArchiveWriter, archive_path
from broker.log.environment import remove_file
from broker.log.verify import Verifier
from broker.model.errors import StorageError
from tests.fault.harness import ROOT
from tests.fault.nth import PARTS, memory_folder
from tests.reference.chains import EPOCH, Chain
from tests.reference.groups import Entry, channel_entry, epoch_entry
from tests.unit.log.support import opened, segment_files

FLIPS = 10_000
PAGE_BITS = 4096 * 8
HEADER_BITS = 64 * 8
"""The first bytes of a page, which LMDB trusts; half of the flips go there."""
GROUPS = 60
RESTARTS_MAX = 20
PLACE = re.compile(r"(\.seg|/format|\.mdb): .+")
"""What an error says: the file, and what is wrong in it."""


@dataclass(slots=True)
class Verdict:
    """What the flips came to.

    Attributes:
        same: everything was read as it had been written.
        named: an error named the file and what is wrong in it.
        codes: how often each error came.
        wrong: bytes that nobody wrote were handed out, or the error named no place; where.
        died: the process died of a signal; where.
        seconds: how long it took.
    """

    same: int = 0
    named: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def flips(self) -> int:
        """How many bits were flipped."""
        return self.same + self.named + len(self.wrong) + len(self.died)

    def add(self, other: Verdict) -> None:
        """Take in what another process found."""
        self.same += other.same
        self.named += other.named
        self.codes = dict(Counter(self.codes) + Counter(other.codes))
        self.wrong += other.wrong
        self.died += other.died

    def __str__(self) -> str:
        codes = ", ".join(f"{name} {count}" for name, count in self.codes.items())
        return (
            f"{self.flips} bits flipped in {self.seconds:.0f} s ({self.flips / self.seconds:.0f}/s): {self.named} "
            f"named ({codes}), {self.same} without effect, {len(self.wrong)} wrong bytes or nameless errors, "
            f"{len(self.died)} crashes"
        )


def make(path: Path) -> None:
    """Make an archive of the first half, and a journal of sealed segments and an active one behind it."""
    with opened(path) as one:
        chain = Chain()
        named = [entry for channel in range(1, 8) for entry in birth(channel)]
        one.append(chain, entries=named)
        one.fill(chain, GROUPS, payload_bytes=900)
        assert one.log.wait_sealed(10)
    first = segment_files(path)[0]
    writer = ArchiveWriter(archive_path(path))
    writer.archive([first], lambda: None)
    writer.close()
    remove_file(first)
    assert len(segment_files(path)) >= 3


def birth(channel: int) -> list[Entry]:
    """Return the entries with which a channel begins."""
    return [channel_entry(channel, f"c.{channel}"), epoch_entry(channel, EPOCH, 1)]


def read(path: Path) -> object:
    """Open, replay and read everything there is."""
    with opened(path) as one:
        return one.all_groups(), [one.all_of_channel(channel) for channel in range(1, 8)], one.tables


def pick_bit(chance: random.Random, size: int) -> int:
    """Return a bit of a file of so many bytes."""
    bit = chance.randrange(size * 8)
    if chance.random() < 0.5:
        bit = bit // PAGE_BITS * PAGE_BITS + chance.randrange(HEADER_BITS)
    return min(bit, size * 8 - 1)


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b", buffering=0) as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def work(folder: Path, first: int, step: int, until: int) -> None:
    """Flip bits `first`, `first + step`, …; say of each which one it is, and then what came of it."""
    logging.disable(logging.CRITICAL)
    whole, copy = folder / "whole", folder / f"copy-{first}"
    # Never the original itself: a log that opens it would keep the other processes out.
    shutil.copytree(whole, copy)
    expected = read(copy)
    for number in range(first, until, step):
        chance = random.Random(number)
        # A log that opens writes to its directory; what it must find is the same each time.
        shutil.rmtree(copy)
        shutil.copytree(whole, copy)
        files = [path for path in [*segment_files(copy), archive_path(copy)] if path.stat().st_size > 2 * 4096]
        file = chance.choice([*files, copy / "format"] if number % 50 == 0 else files)
        bit = pick_bit(chance, file.stat().st_size)
        flip(file, bit)
        print(json.dumps([number, f"flip {number}: {file.name} bit {bit}"]), flush=True)
        print(json.dumps(judge(copy, expected)), flush=True)


def judge(path: Path, expected: object) -> str:
    """Say what came of a flip: `same`, the name of the error that names it, or what is wrong."""
    try:
        named = not Verifier(path).run().sound
        try:
            return "same" if read(path) == expected else "other bytes"
        except StorageError as failure:
            if not PLACE.search(failure.detail):
                return f"names no place: {failure}"
            return failure.name if named else f"verify does not name {failure}"
    except Exception as failure:
        return f"nobody handles {failure!r}"


def run_part(folder: Path, part: int, parts: int, flips: int) -> Verdict:
    """Have a process of its own work, and the next one go on where it died."""
    verdict, at = Verdict(), part
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ext")])}
    for _ in range(RESTARTS_MAX):
        command = [sys.executable, "-m", "tests.fault.flips", "--work", str(folder), str(at), str(parts), str(flips)]
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for (_, where), outcome in zip(lines[::2], lines[1::2], strict=False):
            count(verdict, where, outcome)
        if done.returncode == 0:
            return verdict
        if done.returncode > 0 or len(lines) % 2 == 0:
            raise AssertionError(f"a part of the work has failed with status {done.returncode}")
        number, where = lines[-1]
        verdict.died.append(f"{where}: signal {-done.returncode}")
        at = number + parts
    raise AssertionError(f"dies again and again: {verdict.died}")


def count(verdict: Verdict, where: str, outcome: str) -> None:
    """Count one outcome."""
    if outcome == "same":
        verdict.same += 1
    elif outcome.isupper():
        verdict.named += 1
        verdict.codes[outcome] = verdict.codes.get(outcome, 0) + 1
    else:
        verdict.wrong.append(f"{where}: {outcome}")


def run(flips: int) -> Verdict:
    """Flip so many bits, on every core."""
    folder = Path(tempfile.mkdtemp(prefix="broker-flips-", dir=memory_folder()))
    total = Verdict()
    begun_s = time.monotonic()
    try:
        make(folder / "whole")
        with ThreadPoolExecutor(PARTS) as pool:
            for verdict in pool.map(lambda part: run_part(folder, part, PARTS, flips), range(PARTS)):
                total.add(verdict)
    finally:
        shutil.rmtree(folder)
    total.seconds = time.monotonic() - begun_s
    return total


def main() -> int:
    """Run as the module's docstring says; the status is 1 when something is wrong."""
    parser = argparse.ArgumentParser(description="Flip bits in a journal.")
    parser.add_argument("--flips", type=int, default=FLIPS)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Path(options.work[0]), *map(int, options.work[1:]))
        return 0
    verdict = run(options.flips)
    print(verdict)
    for failure in [*verdict.wrong, *verdict.died]:
        print(failure)
    return 1 if verdict.wrong or verdict.died else 0


if __name__ == "__main__":
    sys.exit(main())
