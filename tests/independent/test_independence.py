"""The independent client stands on the document and the standard library alone, and sees what is wrong with bytes."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.independent import frames, msgpack
from tests.independent.crc32c import crc32c
from tests.independent.frames import Kind, Malformed, Splitter

FOLDER = Path(__file__).parent
MODULES = ("client", "conversation", "crc32c", "frames", "line", "msgpack", "place")
SPECIFICATION = FOLDER.parents[1] / "broker" / "wire" / "specification.md"
CLIENT_KINDS = {
    Kind.HELLO,
    Kind.CHANNEL,
    Kind.SUBSCRIBE,
    Kind.UNSUBSCRIBE,
    Kind.REQUEST,
    Kind.PUBLISH,
    Kind.CREDIT,
    Kind.ACK,
    Kind.TRANSACTION,
}


def foreign(source: str) -> set[str]:
    """Modules that a source imports and that are neither the standard library's nor its neighbours."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
            names.add("." * node.level)
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", MODULES)
def test_it_imports_the_standard_library_alone(module: str) -> None:
    assert foreign((FOLDER / f"{module}.py").read_text()) == set()


def test_a_foreign_import_is_seen() -> None:
    source = "import os, broker.client\nfrom broker_native import clock\nfrom .. import golden\nfrom . import line"
    assert foreign(source) == {"broker", "broker_native", ".."}


def test_it_runs_where_nothing_else_is(tmp_path: Path) -> None:
    """In a folder of its own, in a process without site-packages, environment and current folder on the path."""
    (tmp_path / "alone").mkdir()
    for module in MODULES:
        shutil.copy(FOLDER / f"{module}.py", tmp_path / "alone")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import alone.client;"
        "print(sorted(name for name in sys.modules if name.startswith(('broker', 'tests'))))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert run.stdout.strip() == "[]"


def drawn(kind: str) -> list[bytes]:
    """The bytes of the document's blocks of one kind."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", SPECIFICATION.read_text(), re.DOTALL | re.MULTILINE)
    return [
        bytes.fromhex("".join(match[0] for match in re.finditer(r"^(?:[0-9a-f]{2} ?)+(?=\s|$)", block, re.MULTILINE)))
        for block in blocks
    ]


def test_it_reads_each_frame_that_the_document_draws() -> None:
    kinds: set[int] = set()
    for block in [*drawn("hex"), *drawn("hex server")]:
        splitter = Splitter()
        splitter.feed(block)
        while (found := splitter.next()) is not None:
            kinds.add(found[0])
            if found[0] not in CLIENT_KINDS:
                frames.decode(*found)
    assert kinds == set(Kind)


def test_no_flipped_bit_of_a_chunk_goes_unseen() -> None:
    (data,) = drawn("chunk")
    assert frames.chunk(data).count == 5
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Malformed):
            frames.chunk(bytes(broken))


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(24, b"\0" * 8, id="first 0"),
        pytest.param(32, b"\x06", id="count that the records do not cover"),
        pytest.param(36, b"\x01", id="flags of a chunk"),
        pytest.param(56, b"\x10", id="a record that leaves a gap before the next"),
        pytest.param(60, b"\x40", id="an unknown flag of a record"),
        pytest.param(62, b"\x01", id="reserved of a record"),
        pytest.param(118, b"\0", id="a run of 0"),
    ],
)
def test_a_chunk_whose_crc_is_right_is_checked_all_the_same(offset: int, value: bytes) -> None:
    (data,) = drawn("chunk")
    broken = data[:offset] + value + data[offset + len(value) :]
    broken = broken[:4] + crc32c(broken[8:]).to_bytes(4, "little") + broken[8:]
    with pytest.raises(Malformed):
        frames.chunk(broken)


def test_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


@pytest.mark.parametrize(
    ("value", "packed"),
    [
        (None, "c0"),
        (True, "c3"),
        (127, "7f"),
        (128, "cc80"),
        (2**16, "ce00010000"),
        (2**64 - 1, "cf" + "ff" * 8),
        (-32, "e0"),
        (-33, "d0df"),
        (-(2**63), "d380" + "00" * 7),
        (1.5, "cb3ff8000000000000"),
        ("é", "a2c3a9"),
        (b"\xff", "c401ff"),
        ([1, [2]], "92019102"),
        ({"a": {}}, "81a16180"),
    ],
)
def test_msgpack(value: object, packed: str) -> None:
    assert msgpack.pack(value).hex() == packed
    assert msgpack.unpack(bytes.fromhex(packed)) == value


@pytest.mark.parametrize("data", ["", "81", "c1", "d40000", "a1ff", "0100", "81a161", "8100a0", "91" * 17 + "00"])
def test_what_is_no_control_body_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        msgpack.unpack(bytes.fromhex(data))
