"""The native layout and `kinds` say the same numbers; `test_specification.py` holds the document to both."""

from __future__ import annotations

import re
from pathlib import Path

from broker.model.levels import Level
from broker.wire import kinds

ROOT = Path(__file__).parents[3]
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


def test_record_flags_agree() -> None:
    ours = {flag.name: int(flag) for flag in kinds.RecordFlag}
    theirs = {name: value for name, value in layout_names("RECORD_").items() if name in ours}
    assert ours == theirs
    assert int(kinds.RECORD_FLAGS_CLIENT) == layout("RECORD_FLAGS_CLIENT")
    assert int(kinds.RECORD_FLAGS_KNOWN) == layout("RECORD_FLAGS_KNOWN")


def test_sizes_and_small_numbers_agree() -> None:
    for name in (
        "FRAME_HEADER_BYTES",
        "PUBLISH_HEADER_BYTES",
        "PUBLISH_COUNT_MAX",
        "PUBLISH_EXPECT_BYTES",
        "TRANSACTION_HEADER_BYTES",
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
    assert {flag.name: int(flag) for flag in kinds.PublishFlag} == layout_names("PUBLISH_FLAG_")
    assert {flag.name: int(flag) for flag in kinds.DeliverFlag} == layout_names("DELIVER_FLAG_")
    reasons = {reason.name: int(reason) for reason in kinds.GoneReason}
    assert reasons == {name: value for name, value in layout_names("GONE_").items() if name in reasons}
    assert {level.name: int(level) for level in Level} == layout_names("LEVEL_")
