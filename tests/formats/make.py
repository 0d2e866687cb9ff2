"""Makes a data directory in the format of this build, small and with everything in it that the format has.

`python -m tests.formats.make NAME` writes `tests/formats/data/NAME.tar.gz`: the directory, and `expected.jsonl`, what
`broker dump` says of it. Whoever changes a format makes the files of the old one first, with the old code: from then
on every build must open them.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from broker import Broker
from broker.cli.jsonl import encode_line
from broker.log.dump import dump
from broker.model.levels import Level
from broker.model.profiles import Profile

DATA = Path(__file__).parent / "data"
PROFILES = (Profile(b"a.>", durability=Level.ACCEPTED), Profile(b"e.>", durability=Level.EPHEMERAL), Profile(b">"))
SEGMENT_BYTES = 6_000
PRODUCER = bytes(range(16))


async def run(path: Path, number: int) -> None:
    """Live one run: all levels, all fields of records, a producer that comes back."""
    async with Broker.open(
        path, profiles=PROFILES, segment_bytes=SEGMENT_BYTES, reserve_bytes=0, producer=PRODUCER
    ) as bus:
        for each in range(12):
            await bus.publish(f"s.{each % 3}", f"run {number}, message {each}".encode() * 20)
            await bus.publish("a.one", bytes([number, each]), headers={"n": each}, key=b"\xff%d" % each, priority=0)
            await bus.publish(f"s.run.{number}", b"", expiry_s=10**9)
            await bus.publish("e.gone", b"never stored")


def messages(path: Path) -> list[str]:
    """Return the lines that a dump of a directory has."""
    lines: list[str] = []
    dump(path, lambda name: True, lambda message: lines.append(encode_line(message)))
    return lines


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a golden file of ours; `filter` came with Python 3.11.4 and must be there from 3.12 on."""
    with tarfile.open(archive) as packed:
        if hasattr(tarfile, "data_filter"):
            packed.extractall(folder, filter="data")
        else:
            packed.extractall(folder)


def main() -> None:
    """Run as the module's docstring says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        for number in (1, 2):
            asyncio.run(run(path, number))
        time.sleep(1)  # the second run seals what the first one filled
        expected = "".join(line + "\n" for line in messages(path)).encode()
        with tarfile.open(DATA / f"{sys.argv[1]}.tar.gz", "w:gz") as archive:
            for file in sorted(each for each in path.rglob("*") if each.is_file() and not each.name.endswith("lock")):
                archive.add(file, f"data/{file.relative_to(path)}")
            info = tarfile.TarInfo("expected.jsonl")
            info.size = len(expected)
            archive.addfile(info, io.BytesIO(expected))


if __name__ == "__main__":
    main()
