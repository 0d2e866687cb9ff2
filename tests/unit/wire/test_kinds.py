"""The protocol's numbers stand in three places: the specification, the native layout and `kinds`. They agree."""

from __future__ import annotations

import re
from pathlib import Path

from broker.model.levels import Level
from broker.wire import kinds

ROOT = Path(__file__).parents[3]
SPECIFICATION = (ROOT / "broker/wire/specification.md").read_text()
LAYOUT = dict(
    re.findall(
        r"^    ([A-Z][A-Z0-9_]+) = (0x[0-9A-Fa-f]+|\d+)", (ROOT / "ext/broker_native/layout.pxd").read_text(), re.M
    )
)


def layout(name: str) -> int:
    return int(LAYOUT[name], 0)


def layout_names(prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): int(value, 0) for name, value in LAYOUT.items() if name.startswith(prefix)}


def test_kinds_agree() -> None:
    ours = {kind.name: int(kind) for kind in kinds.Kind}
    assert ours == layout_names("KIND_")
    table = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", SPECIFICATION, re.M)
    assert ours == {name: int(number) for number, name in table}


def test_record_flags_agree() -> None:
    ours = {flag.name: int(flag) for flag in kinds.RecordFlag}
    theirs = {name: value for name, value in layout_names("RECORD_").items() if name in ours}
    assert ours == theirs
    table = re.findall(r"^\| (0x[0-9a-f]{4}) \| ([A-Z]+) \|", SPECIFICATION, re.M)
    assert ours == {name: int(number, 16) for number, name in table}
    assert int(kinds.RECORD_FLAGS_CLIENT) == layout("RECORD_FLAGS_CLIENT")
    assert int(kinds.RECORD_FLAGS_KNOWN) == layout("RECORD_FLAGS_KNOWN")


def test_sizes_and_small_numbers_agree() -> None:
    for name in (
        "FRAME_HEADER_BYTES",
        "PUBLISH_HEADER_BYTES",
        "PUBLISH_COUNT_MAX",
        "PUBLISHED_ENTRY_BYTES",
        "PUBLISHED_FLAG_DUPLICATE",
        "DELIVER_HEADER_BYTES",
        "CREDIT_BYTES",
        "RECORD_HEADER_BYTES",
        "CHUNK_HEADER_BYTES",
        "CHUNK_BYTES_CLOSE",
        "GONE_RECORD_BYTES",
        "LINE_WINDOW",
    ):
        assert getattr(kinds, name) == layout(name), name
    assert {flag.name: int(flag) for flag in kinds.DeliverFlag} == layout_names("DELIVER_FLAG_")
    reasons = {reason.name: int(reason) for reason in kinds.GoneReason}
    assert reasons == {name: value for name, value in layout_names("GONE_").items() if name in reasons}
    assert {level.name: int(level) for level in Level} == layout_names("LEVEL_")


def test_the_specification_says_the_same_limits() -> None:
    prose = " ".join(SPECIFICATION.split())
    assert f"{kinds.FRAME_BYTES_BEFORE_WELCOME_MAX:,} before it, and {kinds.HELLO_BYTES_MAX:,} for HELLO" in prose
    assert f"Entries of {kinds.PUBLISHED_ENTRY_BYTES} bytes" in prose
    assert f"the last {kinds.LINE_WINDOW:,} numbers" in prose
    assert f"closes at {kinds.CHUNK_BYTES_CLOSE:,} bytes" in prose
    assert f"`count` is 1 to {kinds.PUBLISH_COUNT_MAX:,}" in prose
    for reason in kinds.GoneReason:
        assert f"{int(reason)} {reason.name.lower()}" in prose
