"""What fuzzing leaves behind: finds, which replay, and inputs that are worth beginning with.

A find is a file of the target's name and the inputs that its world took, each after its size; the last is the one that
did it. A target's corpus is such a file as well.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
MAGIC = b"BFIND\1"
KEPT_MAX = 40
KEPT_BYTES_MAX = 600
"""A corpus in the repository is small: executions make it grow again, in memory, within seconds."""


def encode(target: str, inputs: list[bytes]) -> bytes:
    """Return a find's bytes."""
    name = target.encode()
    return MAGIC + bytes([len(name)]) + name + b"".join(struct.pack("<I", len(data)) + data for data in inputs)


def write(folder: Path, target: str, inputs: list[bytes]) -> Path:
    """Write a find; returns its path."""
    content = encode(target, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target}-{zlib.crc32(content):08x}"
    path.write_bytes(content)
    return path


def read(path: Path) -> tuple[str, list[bytes]]:
    """Return a find's target and inputs.

    Raises:
        SystemExit: It is none.
    """
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise SystemExit(f"{path}: is no find of this fuzzer")
    at = len(MAGIC) + 1
    end = at + content[at - 1]
    target, inputs = content[at:end].decode(), []
    while end < len(content):
        (size,) = struct.unpack_from("<I", content, end)
        inputs.append(content[end + 4 : end + 4 + size])
        end += 4 + size
    return target, inputs


def kept(target: str) -> list[bytes]:
    """Return the inputs of a target's corpus."""
    path = CORPUS / target
    return read(path)[1] if path.exists() else []


def keep(target: str, inputs: list[bytes]) -> None:
    """Add the smallest of some inputs to a target's corpus, as long as it has room."""
    found = kept(target)
    small = sorted((data for data in inputs if len(data) <= KEPT_BYTES_MAX and data not in found), key=len)
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / target).write_bytes(encode(target, (found + small)[:KEPT_MAX]))
