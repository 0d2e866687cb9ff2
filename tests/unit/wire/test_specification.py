"""specification.md says what the code does: every number, table, drawing and example of it is compared.

The checks are functions of the document's text, so that a test can plant a wrong number and see that one of them fails.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from broker.access.rates import IPV6_BITS
from broker.config import ServerConfig
from broker.core import sequencer
from broker.core.recent import INDEX_END
from broker.edge import session
from broker.edge.accepting import GREETING_MAX
from broker.edge.consuming import OPERATIONS
from broker.model import consumers
from broker.model.delayed import DELAYED_MAX
from broker.model.errors import BY_CODE, BY_NAME, ERROR_CODES, BrokerError, Remedy, error
from broker.model.history import HISTORY_BYTES_DEFAULT, HISTORY_BYTES_MAX, NAMES_MAX, PLACES_MAX
from broker.model.levels import Level
from broker.model.limits import FRAME_OVERHEAD_BYTES, Limits
from broker.model.names import ID_BYTES_MAX, NAME_BYTES_MAX, TOKEN_BYTES_MAX, check_channel
from broker.model.settings import settings_of
from broker.node import letters
from broker.node.history import ASKS_MAX
from broker.node.letters import TIMES_MAX
from broker.node.stretch import SEQUENCES_MAX
from broker.remote.bus import AHEAD_BYTES_MAX
from broker.remote.places import BusPlace
from broker.wire import consuming, control, kinds
from broker.wire.kinds import Kind, PublishFlag
from broker.wire.secure import NO_TLS, REFUSAL
from broker_native.crc32c import crc32c_of
from broker_native.draft import Draft
from broker_native.lines import Line
from broker_native.messages import FrameReader
from broker_native.posting import PublishBuffer
from broker_native.publisher import CODES, Publisher
from broker_native.tails import Tails
from tests.golden.annotate import Bytes, annotate, bytes_of, chunk_fields, frames, render
from tests.golden.conversations import named, publish, transaction
from tests.golden.conversations import specification as conversation
from tests.golden.document import CHUNK, EXAMPLES
from tests.golden.stage import Stage
from tests.native.plain_jobs import ACK_LEASES_MAX, DELAY_MS_MAX, JOBS_BODY_BYTES_MAX, LANE_SHARES
from tests.reference.frames import Record, build_record
from tests.reference.groups import Chunk, build_chunk
from tests.reference.server import deliver

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "broker/wire/specification.md").read_text()
LAYOUT_TEXT = (ROOT / "ext/broker_native/layout.pxd").read_text()
INT_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
CLIENT_FLAGS = {"PRIORITY", "EXPIRY", "KEY", "HEADERS", "ID"}


# -- reading the document ----------------------------------------------------------------------------------------------


class Document:
    """The document's parts."""

    def __init__(self, text: str) -> None:
        self.text = text
        parts = re.split(r"^## (\d+)\. .*$", text, flags=re.M)
        self.sections = {int(number): body for number, body in zip(parts[1::2], parts[2::2], strict=True)}

    def table(self, section: int, head: str) -> list[list[str]]:
        """Return the rows of the section's table whose first line begins like this."""
        lines = self.sections[section].splitlines()
        at = next(index for index, line in enumerate(lines) if line.startswith(head))
        rows = []
        for line in lines[at + 2 :]:
            if not line.startswith("|"):
                break
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        assert rows
        return rows

    def blocks(self, section: int, kind: str) -> list[tuple[str, str]]:
        """Return the fenced blocks of a kind: (its further words, its text)."""
        found = re.findall(rf"^```{kind}( \w+)?\n(.*?)^```$", self.sections[section], re.M | re.S)
        return [(words.strip(), body) for words, body in found]

    def drawings(self, section: int) -> list[Drawing]:
        return [Drawing(body) for _, body in self.blocks(section, "") if re.match(r" 0 +\d", body)]

    def prose(self, section: int) -> str:
        """Return the words outside tables and blocks, in one line."""
        outside = re.sub(r"^```.*?^```$", "", self.sections[section], flags=re.M | re.S)
        return " ".join(line.strip() for line in outside.splitlines() if not line.startswith("|"))


class Drawing:
    """A byte layout: offsets above names above types."""

    def __init__(self, text: str) -> None:
        offsets, names, types = text.splitlines()
        self.offsets = [int(number) for number in offsets.split()]
        self.names = [cell.strip() for cell in names.strip().strip("|").split("|")]
        self.types = [
            (kind, int(times or 1)) for kind, times in re.findall(r"(u8|u16|u32|u64)(?: × (\d+))?(?: = 0)?", types)
        ]
        assert set(re.findall("= .", types)) <= {"= 0"}
        self.rest = self.names[len(self.types) :]
        self.names = self.names[: len(self.types)]

    @property
    def sizes(self) -> list[int]:
        return [INT_SIZES[kind] * times for kind, times in self.types]

    def fields(self) -> dict[str, int]:
        """Return the offset of each field, after checking that types and offsets agree."""
        ends = [sum(self.sizes[:index]) for index in range(len(self.sizes) + 1)]
        assert self.offsets == ends, f"{self.offsets} drawn, {ends} by the types"
        return dict(zip(self.names, self.offsets, strict=False))


def number(text: str) -> float:
    return float(text.replace(",", "")) if "." in text else int(text.replace(",", ""))


@cache
def layout() -> dict[str, int]:
    found = re.findall(r"^    ([A-Z][A-Z0-9_]+) = (0x[0-9A-Fa-f]+|\d+)", LAYOUT_TEXT, re.M)
    return {name: int(value, 0) for name, value in found}


def layout_types(name: str) -> list[int]:
    """Return the sizes of the fields that the comment behind a constant of the native layout names."""
    comment = re.search(rf"^    {name} = \d+ +# (.*)$", LAYOUT_TEXT, re.M)
    assert comment is not None
    sizes = []
    for part in comment[1].split(", "):
        kind, _ = part.split(" ", 1)
        sizes.append(INT_SIZES[kind] if kind in INT_SIZES else int(kind) if kind.isdigit() else 0)
    return sizes


def struct_sizes(packed: struct.Struct) -> list[int]:
    """Return the sizes of a struct's fields, a run of padding as one."""
    sizes = {"B": 1, "H": 2, "I": 4, "Q": 8}
    return [int(times) if code == "x" else sizes[code] for times, code in re.findall(r"(\d*)([BHIQx])", packed.format)]


# -- layouts -----------------------------------------------------------------------------------------------------------


def check_frame(document: Document) -> None:
    [drawing] = document.drawings(2)
    fields = drawing.fields()
    assert list(fields) == ["size", "kind", "flags", "reserved"]
    assert drawing.sizes == struct_sizes(control.FRAME_HEADER)
    assert drawing.offsets[-1] == layout()["FRAME_HEADER_BYTES"] == kinds.FRAME_HEADER_BYTES
    assert control.encode_pong(0)[fields["kind"]] == Kind.PONG
    assert control.encode_pong(0)[fields["size"]] == 8
    assert control.frame(1, b"", 0x7F)[fields["flags"]] == 0x7F


def check_record(document: Document) -> None:
    record, gone = document.drawings(3)
    assert list(record.fields()) == ["size", "flags", "reserved", "time_us"]
    assert record.offsets[-1] == layout()["RECORD_HEADER_BYTES"]
    assert record.sizes == layout_types("RECORD_HEADER_BYTES")
    gone.fields()
    assert gone.offsets[-1] == layout()["GONE_RECORD_BYTES"]
    built = build_record(Record(time_us=0x01020304, gone=(5, 0x0A0B0C0D)))
    read = [int.from_bytes(built[at : at + size], "little") for at, size in zip(gone.offsets, gone.sizes, strict=False)]
    fixed = [int(gone.names[0]), int(gone.names[1], 16), int(gone.names[2]), int(gone.names[5])]
    assert read == [*fixed[:3], 0x01020304, 5, fixed[3], 0x0A0B0C0D]
    assert f"A GONE record is {layout()['GONE_RECORD_BYTES']} bytes, has flags {layout()['RECORD_GONE']:#x} alone" in (
        document.prose(3)
    )


def check_record_flags(document: Document) -> None:
    rows = document.table(3, "| bit | flag")
    assert {flag: int(bit, 16) for bit, flag, _, _ in rows} == {flag.name: int(flag) for flag in kinds.RecordFlag}
    assert all(re.fullmatch("0x[0-9a-f]{4}", bit) for bit, _, _, _ in rows)
    assert [int(bit, 16) for bit, _, _, _ in rows] == sorted(int(bit, 16) for bit, _, _, _ in rows)
    client = {flag for _, flag, by, _ in rows if by == "client"}
    assert client == CLIENT_FLAGS
    assert sum(kinds.RecordFlag[flag] for flag in client) == layout()["RECORD_FLAGS_CLIENT"]
    texts = {flag: text for _, flag, _, text in rows}
    assert texts["PUBLISHER"].startswith("u8 length")
    assert texts["NUMBER"].startswith("u64")
    assert (
        texts["PRIORITY"]
        == "u8: "
        + ", ".join(f"{int(item)} {item.name.lower()}" for item in kinds.Priority)
        + f". Without it: {int(kinds.Priority.NORMAL)}"
    )
    assert texts["EXPIRY"].startswith("u32, from 1:")
    assert texts["KEY"].startswith("u16 length, 1 to 255,")
    assert texts["HEADERS"].startswith("u16 length, from 1 to `headers_bytes_max`")
    assert texts["ID"].startswith(f"u8 length, 1 to {layout()['RECORD_ID_BYTES_MAX']}, then bytes")
    assert layout()["RECORD_ID_BYTES_MAX"] == ID_BYTES_MAX


def check_reasons(document: Document) -> None:
    said = re.search(r"Reasons: (.*?)\.", document.prose(3))
    assert said is not None
    assert dict(part.split(" ")[::-1] for part in said[1].split(", ")) == {
        reason.name.lower(): str(int(reason)) for reason in kinds.GoneReason
    }


def check_chunk(document: Document) -> None:
    [drawing] = document.drawings(4)
    fields = drawing.fields()
    assert drawing.offsets[-1] == layout()["CHUNK_HEADER_BYTES"]
    named = {"time_us": "TIME", "expiry_s": "EXPIRY"}
    for name, offset in fields.items():
        if name != "size":
            assert offset == layout()[f"CHUNK_{named.get(name, name.upper())}"], name
    assert [name.strip("`") for name, _ in document.table(4, "| field |")] == list(fields)
    assert drawing.sizes == [4, 4, *struct_sizes(struct.Struct("<QQQIIQQ"))]
    assert f"A chunk closes at {layout()['CHUNK_BYTES_CLOSE']:,} bytes" in document.prose(4)


def check_chunk_vector(document: Document) -> None:
    [(_, block)] = document.blocks(4, "chunk")
    data = bytes_of(block.splitlines())
    assert data == CHUNK
    assert block.splitlines() == [line.rstrip() for line in render(chunk_fields(Bytes(data)))]
    assert crc32c_of(data[8:]) == int.from_bytes(data[4:8], "little")
    reader = FrameReader(error, 1 << 20)
    reader.add_route(1, "target", "s.chat")
    [(_, batch)] = reader.feed(control.frame(Kind.DELIVER, struct.pack("<IIQ", 1, 0, 2) + data))
    assert (len(batch), batch.first, batch.last, len(batch.gone)) == (2, 7, 11, 1)
    prose = document.prose(4)
    assert f"of its bytes 8 to {len(data)}:" in prose
    assert "A whole chunk of three records, five sequences with its GONE run" in prose
    assert f"Of the nine bytes `123456789` it is 0x{crc32c_of(b'123456789'):08X}." in prose
    check_polynomial(prose)


def check_polynomial(prose: str) -> None:
    """Compute the CRC bit by bit with the document's polynomial."""
    found = re.search(
        r"polynomial 0x([0-9A-F]{8}) \(reflected form 0x([0-9A-F]{8})\), register begun with and finally inverted by "
        r"0x([0-9A-F]{8})\.", prose
    )  # fmt: skip
    assert found is not None
    polynomial, reflected, ends = (int(item, 16) for item in found.groups())
    assert int(f"{polynomial:032b}"[::-1], 2) == reflected
    register = ends
    for byte in b"123456789":
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (reflected if register & 1 else 0)
    assert register ^ ends == crc32c_of(b"123456789")


def check_hot_bodies(document: Document) -> None:
    channel, publish, expects, delayed, transacts, published, named = document.drawings(7)
    deliver, credit = document.drawings(10)
    [token] = document.drawings(13)
    jobs, job, ack, entry = document.drawings(18)
    for drawing in (
        channel, publish, expects, delayed, transacts, published, named, deliver, credit, token, jobs, job, ack, entry,
    ):  # fmt: skip
        drawing.fields()
    assert named.sizes == struct_sizes(control.NAMED)[:-1]
    assert named.rest[0] == "u8 length, name"
    assert job.sizes == struct_sizes(consuming.JOB)
    assert job.offsets[-1] == layout()["JOB_HEADER_BYTES"] == kinds.JOB_HEADER_BYTES
    assert ack.sizes == struct_sizes(consuming.ACK_HEADER) == layout_types("ACK_HEADER_BYTES")
    assert entry.sizes == struct_sizes(consuming.ACK_ENTRY) == layout_types("ACK_ENTRY_BYTES")
    assert jobs.sizes == struct_sizes(consuming.JOBS_HEADER) == layout_types("JOBS_HEADER_BYTES")
    assert struct_sizes(consuming.ACKED) == layout_types("ACKED_BYTES")
    assert "**ACKED** `u32 subscription, u32 0, u64 number`" in document.prose(18)
    assert channel.sizes == struct_sizes(control.CHANNEL_NUMBER)
    assert token.sizes == struct_sizes(control.TOKEN)
    assert credit.sizes == struct_sizes(control.CREDIT) == layout_types("CREDIT_BYTES")
    assert published.sizes == struct_sizes(sequencer.PUBLISHED) == layout_types("PUBLISHED_ENTRY_BYTES")
    assert publish.sizes == layout_types("PUBLISH_HEADER_BYTES")
    assert deliver.sizes == layout_types("DELIVER_HEADER_BYTES")
    assert transacts.sizes == layout_types("TRANSACTION_HEADER_BYTES")
    assert transacts.offsets[-1] == layout()["TRANSACTION_HEADER_BYTES"]
    assert (expects.names[:3], expects.sizes[:3]) == (publish.names, publish.sizes)
    assert expects.offsets[-1] == layout()["PUBLISH_HEADER_BYTES"] + layout()["PUBLISH_EXPECT_BYTES"]
    assert (delayed.names[:3], delayed.sizes[:3]) == (publish.names, publish.sizes)
    assert delayed.offsets[-1] == layout()["PUBLISH_HEADER_BYTES"] + layout()["PUBLISH_AT_BYTES"]
    for drawing, name in (
        (publish, "PUBLISH_HEADER_BYTES"),
        (published, "PUBLISHED_ENTRY_BYTES"),
        (deliver, "DELIVER_HEADER_BYTES"),
        (credit, "CREDIT_BYTES"),
        (jobs, "JOBS_HEADER_BYTES"),
        (ack, "ACK_HEADER_BYTES"),
        (entry, "ACK_ENTRY_BYTES"),
    ):
        assert drawing.offsets[-1] == layout()[name]
        comment = re.search(rf"^    {name} = \d+ +# (.*)$", LAYOUT_TEXT, re.M)
        assert comment is not None
        said = [part.split(" ")[1] for part in comment[1].split(", ")]
        assert [name if name != "reserved" else "zero" for name in drawing.names] == said
    prose = document.prose(7)
    assert f"one or more entries of {layout()['PUBLISHED_ENTRY_BYTES']} bytes, nothing else" in prose
    assert f"the body has its {layout()['PUBLISH_HEADER_BYTES']} bytes" in prose
    assert f"`count` is 1 to {layout()['PUBLISH_COUNT_MAX']:,}." in prose
    assert f"Flag {layout()['PUBLISHED_FLAG_DUPLICATE']} is *duplicate*" in prose
    assert f"(not the header, the {layout()['DELIVER_HEADER_BYTES']} bytes and the name before it)" in document.prose(
        10
    )
    assert f"`size` is the rest of the body, at least {layout()['CHUNK_HEADER_BYTES']};" in document.prose(10)
    assert f"each record's `size` is at least {layout()['RECORD_HEADER_BYTES']} and" in document.prose(10)


def check_publish_flags(document: Document) -> None:
    rows = document.table(7, "| flag | name")
    others = [flag for flag in PublishFlag if flag not in (PublishFlag.EXPECT, PublishFlag.AT)]
    assert {name: int(bit) for bit, name, _ in rows} == {flag.name: int(flag) for flag in others}


def check_consumers(document: Document) -> None:
    """What section 18 says in numbers of settings, verbs and lanes."""
    prose = " ".join(document.sections[18].split())
    verbs = document.table(18, "| verb |")
    assert [(int(verb), name.replace(" ", "_").upper()) for verb, name, _ in verbs] == [
        (int(verdict), verdict.name) for verdict in consumers.Verdict
    ]
    assert f"from 1; {consumers.WINDOW_DEFAULT} unless said" in prose
    assert f"from 1; {consumers.WINDOW_BYTES_DEFAULT:,} unless said" in prose
    settings = consumers.ConsumerSettings("", ())
    low, high = consumers.LEASE_MS_MIN, consumers.LEASE_MS_MAX
    assert f"from {low} to {high:,}; {settings.lease_ms:,} unless said. Of an exclusive one also 0:" in prose
    assert f"up to {consumers.ATTEMPTS_MAX:,}; {settings.attempts_max}, unless said, sets no bound" in prose
    assert f"{consumers.ATTEMPTS_MAX:,} stands for more" in prose
    assert f"`{list(settings.backoff_ms)}` unless said" in prose
    critical, high_share, normal, low_share = LANE_SHARES
    assert f"of {sum(LANE_SHARES)} that are given out {critical} are critical, {high_share} high" in prose
    assert f"{high_share} high, {normal} normal and {low_share} low" in prose
    assert f"flag NAME ({int(kinds.JobFlag.NAME)})" in prose
    assert f"Flag REDELIVERED ({int(kinds.JobFlag.REDELIVERED)})" in prose
    ops = {op.strip("`") for op, *_ in document.table(18, "| op | further keys")}
    assert ops == set(OPERATIONS)
    named = [key.strip("`") for keys, *_ in document.table(18, "| setting | type") for key in keys.split(", ")]
    assert named == [field.name for field in dataclasses.fields(consumers.ConsumerSettings)]
    headers = {key.strip("`") for keys, *_ in document.table(18, "| header | type") for key in keys.split(", ")}
    assert headers == letters.OWN_KEYS


def check_deliver_flags(document: Document) -> None:
    rows = document.table(10, "| frame flag")
    assert {name: int(bit) for bit, name, _ in rows} == {flag.name: int(flag) for flag in kinds.DeliverFlag}


# -- kinds, levels, sizes ----------------------------------------------------------------------------------------------


def check_kinds(document: Document) -> None:
    rows = document.table(2, "| kind | name")
    assert {name: int(kind) for kind, name, *_ in rows} == {kind.name: int(kind) for kind in Kind}
    assert [int(kind) for kind, *_ in rows] == sorted(int(kind) for kind, *_ in rows)
    client = {Kind[name] for _, name, by, *_ in rows if by in ("client", "both")}
    assert client == {Kind.HELLO, *session._HANDLERS}
    assert {name for _, name, by, *_ in rows if by == "both"} == {"PING", "PONG"}
    answers = {name: row for _, name, _, *row in rows}
    assert answers["PING"][0].startswith("u64 token")
    assert answers["CHANNEL"][0].startswith("u32 number, then the name")
    assert answers["HELLO"][0].startswith(f"{len(kinds.HELLO_MAGIC)} bytes, then a map")


def check_body_sizes(document: Document) -> None:
    rows = dict(document.table(2, "| direction"))
    highest = settings_of(Limits)
    payload, headers = highest["payload_bytes_max"].high, highest["headers_bytes_max"].high
    assert payload is not None
    assert headers is not None
    bound = int(payload + headers) + FRAME_OVERHEAD_BYTES
    assert bound == kinds.FRAME_BYTES_MAX
    assert rows["client to server, HELLO"] == f"{kinds.HELLO_BYTES_MAX:,}"
    assert kinds.HELLO_BYTES_MAX == session.HELLO_BYTES_MAX
    assert rows["client to server, after HELLO"] == "`frame_bytes_max` of WELCOME"
    assert rows["server to client, before and with WELCOME"] == f"{kinds.FRAME_BYTES_BEFORE_WELCOME_MAX:,}"
    assert rows["server to client, after WELCOME"].endswith(f": up to {bound:,}")
    fixed = {what: (limit, beyond) for what, limit, beyond in document.table(15, "| what | limit")}
    assert fixed["body of any server's frame, bytes"][0] == f"{bound:,}"


def check_levels(document: Document) -> None:
    text = document.prose(1)
    said = re.search(r"\*\*Durability levels\*\*: (.*?)\. A channel's", text)
    assert said is not None
    levels = dict(re.findall(r"(\d) (ephemeral|accepted|synced|replicated)", said[1]))
    assert levels == {str(int(level)): level.label for level in Level}
    assert f"on disk within {sequencer.ACCEPTED_WAIT_US // 1000} ms" in said[1]
    assert f"`level`: uint, {int(min(Level))} to {int(max(Level))} " in document.sections[13]


def check_conventions(document: Document) -> None:
    prose = document.prose(1)
    assert f"at most {control.ITEMS_MAX:,} items" in prose
    assert f"at most {control.DEPTH_MAX} containers" in prose
    assert f"at most {control.ITEMS_TOTAL_MAX:,} values" in prose
    assert f"are 1 to {NAME_BYTES_MAX} bytes: tokens" in prose
    assert f"each of 1 to {TOKEN_BYTES_MAX} bytes from 0x21 to 0x7E other than" in prose
    assert f"A **producer** is a {kinds.PRODUCER_BYTES}-byte name" in prose
    check_token_bytes(prose)


def check_token_bytes(prose: str) -> None:
    """The bytes of a name are those that the document lets stand."""
    found = re.search(r"from (0x[0-9A-F]+) to (0x[0-9A-F]+) other than ((?:`[^ ]+` )+?`\\`)", prose)
    assert found is not None
    refused = {item.strip("`") for item in found[3].split(" ")}
    legal = {chr(byte) for byte in range(int(found[1], 16), int(found[2], 16) + 1)} - refused
    for byte in range(256):
        try:
            check_channel(b"a" + bytes([byte]) + b"b")
        except BrokerError:
            taken = False
        else:
            taken = True
        # A dot between two bytes parts tokens.
        assert taken == (chr(byte) in legal or byte == ord(".")), byte


# -- limits and errors -------------------------------------------------------------------------------------------------


def shown(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def check_limits(document: Document) -> None:
    settings = settings_of(Limits)
    rows = {key: row for key, *row in document.table(15, "| key | default")}
    assert list(rows) == [f"`limits.{name}`" for name in settings]
    for name, setting in settings.items():
        default, accepted, unit, beyond = rows[f"`limits.{name}`"]
        assert setting.low is not None
        assert setting.high is not None
        assert default == shown(getattr(Limits(), name)), name
        assert accepted == f"{shown(setting.low)} – {shown(setting.high)}", name
        assert unit == setting.unit, name
        for code in re.findall(r"[A-Z]+(?:_[A-Z]+)+", setting.doc):
            assert f"`{code}`" in beyond, name
    for key in re.findall(r"limits\.[a-z_]+", document.text):
        assert key.removeprefix("limits.") in settings, key


def check_welcome_limits(document: Document) -> None:
    rows = dict(document.table(15, "| WELCOME's `limits`"))
    assert [name.strip("`") for name in rows] == list(control.Limits.__dataclass_fields__)
    limits = Limits.small()
    said = rows["`frame_bytes_max`"]
    parts = [
        getattr(limits, part.strip("`").removeprefix("limits.")) if part.startswith("`") else number(part)
        for part in said.split(" + ")
    ]
    assert sum(parts) == limits.frame_bytes_max
    assert said.endswith(f" + {FRAME_OVERHEAD_BYTES:,}")


def check_fixed_limits(document: Document) -> None:
    fixed = {what: (limit, beyond) for what, limit, beyond in document.table(15, "| what | limit")}
    known = {
        "body of HELLO, bytes": kinds.HELLO_BYTES_MAX,
        "body of a server's frame before and with WELCOME, bytes": kinds.FRAME_BYTES_BEFORE_WELCOME_MAX,
        "channel name or filter, bytes": NAME_BYTES_MAX,
        "token of a name, bytes": TOKEN_BYTES_MAX,
        "name of a live group, bytes": control.GROUP_NAME_BYTES_MAX,
        "`count` of PUBLISH, records": kinds.PUBLISH_COUNT_MAX,
        "key of a record, bytes": 255,
        "numbers of a line whose positions are known": kinds.LINE_WINDOW,
        "chunk of more than one record, bytes": kinds.CHUNK_BYTES_CLOSE,
        "credit of a subscription, bytes": 1 << 40,
        "chunks of one answer to `history`, bytes": HISTORY_BYTES_MAX,
        "chunks of one answer to `history` of a pattern": PLACES_MAX,
        "channels of one answer to `channels`": NAMES_MAX,
        "requests of a connection that wait for their answers": ASKS_MAX,
        "connections that have said nothing yet": GREETING_MAX,
        "items of a map or array in a control body": control.ITEMS_MAX,
        "containers inside one another": control.DEPTH_MAX,
        "values of a control body": control.ITEMS_TOTAL_MAX,
        "values of HELLO's map": control.HELLO_ITEMS_TOTAL_MAX,
    }
    known |= {
        "body of JOBS of more than one job, bytes": kinds.JOBS_BYTES_MAX,
        "consumer's name, bytes": consumers.CONSUMER_NAME_BYTES_MAX,
        "filters of a consumer": consumers.CONSUMER_FILTERS_MAX,
        "jobs under way to a member": consumers.WINDOW_MAX,
        "leases of one ACK": ACK_LEASES_MAX,
        "delay or extension of a job, milliseconds": consumers.DELAY_MS_MAX,
        "consumers of one answer to `consumers`": consumers.CONSUMERS_PAGE_MAX,
        "jobs of one answer to `consumer_peek`, runs of one `consumer_done`": consumers.JOBS_PAGE_MAX,
    }
    assert (kinds.JOBS_BYTES_MAX, consumers.DELAY_MS_MAX) == (JOBS_BODY_BYTES_MAX, DELAY_MS_MAX)
    for what, limit in known.items():
        assert fixed[what][0] == f"{limit:,}", what
    assert set(fixed) == {*known, "body of any server's frame, bytes"}
    prose = document.prose(13)
    assert f"{HISTORY_BYTES_DEFAULT:,} unless said; a chunk that is larger comes alone" in document.text
    assert f"counts larger `bytes` as {HISTORY_BYTES_MAX:,}" in prose
    assert f"covers {SEQUENCES_MAX:,} sequences at most" in prose
    assert f"at most {PLACES_MAX:,} `[channel, group" in prose
    assert f"at most `limit` of them, {NAMES_MAX:,} unless said" in prose
    assert f"A server that has {ASKS_MAX:,} of a connection's requests" in prose
    assert f"within the last {kinds.LINE_WINDOW:,} numbers of the line" in document.prose(8)
    limits = Limits()
    assert f"within {limits.hello_timeout_s:g} seconds (`limits.hello_timeout_s`)" in document.prose(5)
    assert f"`limits.ping_timeout_s`, {limits.ping_timeout_s:g} seconds unless" in document.prose(13)
    assert limits.ping_timeout_s == 3 * limits.ping_interval_s
    assert "lost after 3 × `ping_s`" in document.prose(13)


def check_errors(document: Document) -> None:
    rows = document.table(14, "| code | name")
    assert [(int(code), name, remedy) for code, name, remedy, *_ in rows] == [
        (row.code, row.name, row.remedy.value) for row in ERROR_CODES
    ]
    assert {ends for *_, ends, _ in rows} == {"yes", "no", "both", "–"}
    assert all(answers for *_, answers in rows)
    classes = document.table(14, "| class | codes")
    assert [(name, codes) for name, codes, _ in classes] == [
        (remedy.value, f"{index}000–{index}999") for index, remedy in enumerate(Remedy, 1)
    ]


def check_error_names(document: Document) -> None:
    """Every error that the document names is one, and all are of the class that the text speaks of."""
    known = set(BY_NAME)
    words = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+|[A-Z]{4,})`", document.text))
    assert words - known == set()


# -- maps --------------------------------------------------------------------------------------------------------------

WRONG: dict[str, object] = {"uint": -1, "str": 7, "bin": "text", "array": 7, "map": 7, "number": "7"}
WHOLE: dict[str, tuple[int, dict[str, Any], Callable[[bytes], object]]] = {
    "HELLO": (
        5,
        {"versions": [1], "client": "c", "producer": bytes(16), "token": "t"},
        lambda body: control.decode_hello(kinds.HELLO_MAGIC + body),
    ),
    "WELCOME": (
        5,
        {
            "version": 1, "server": "s", "run": 1, "journal": bytes(16), "highest": 0,
            "limits": dict.fromkeys(control.Limits.__dataclass_fields__, 1), "ping_s": 1.5,
            "reply": "$reply.x", "user": "ada", "expires_s": 1.5,
        },
        control.decode_welcome,
    ),
    "SUBSCRIBE": (
        9,
        {"subscription": 1, "filters": ["a"], "credit": 1, "start": {"from": "new"}, "group": "g"},
        control.decode_subscribe,
    ),
    "SUBSCRIBED": (
        9,
        {"subscription": 1, "outcomes": [["a", "new", 1, 1]], "bus": [bytes(16), 1, 1]},
        control.decode_subscribed,
    ),
    "ERROR": (
        14,
        {"code": 1001, "name": "BUSY", "detail": "d", "hint": "h", "retry_after_ms": 1, "subscription": 1, "request": 1,
         "channel": 1, "number": 1, "count": 1, "asked": 1, "replied": 1, "ack": 1, "lease": 1, "leases": 1, "epoch": 1,
         "sequence": 1, "index": 1},
        control.decode_error,
    ),
    "`consumer`": (
        18,
        {"name": "c", "window": 1, "bytes": 1},
        lambda body: control.decode_subscribe(msgpack.packb({"subscription": 1, "consumer": msgpack.unpackb(body)})),
    ),
}  # fmt: skip


def refused(decode: Callable[[bytes], object], body: dict[str, Any]) -> bool:
    try:
        decode(msgpack.packb(body, use_bin_type=True))
    except BrokerError:
        return True
    return False


def check_keys(document: Document) -> None:
    """Each key of each map is the decoder's, with its type, and optional or not."""
    for name, (section, whole, decode) in WHOLE.items():
        rows = document.table(section, f"| {name} key")
        said: dict[str, str] = {}
        for keys, kind, _ in rows:
            for index, key in enumerate(keys.split(", ")):
                parts = kind.split(", uint") if "," in keys else [kind]
                said[key.strip("`")] = kind if len(parts) == 1 else ("uint" if index else parts[0])
                if "optional" in kind and "optional" not in said[key.strip("`")]:
                    said[key.strip("`")] += ", optional"
        assert set(said) == set(whole), name
        assert not refused(decode, {**whole, "unknown": [1, {"a": None}]}), name
        for key, kind in said.items():
            assert refused(decode, {**whole, key: wrong_for(kind)}), f"{name} {key}"
            assert refused(decode, {**whole, key: None}), f"{name} {key}"
            rest = {other: value for other, value in whole.items() if other != key}
            assert refused(decode, rest) != ("optional" in kind), f"{name} {key}"
            check_range(name, key, kind, whole, decode)


def wrong_for(kind: str) -> object:
    return next((value for word, value in WRONG.items() if kind.startswith((word, f"{word} "))), 7)


def check_range(name: str, key: str, kind: str, whole: dict[str, Any], decode: Callable[[bytes], object]) -> None:
    powers = {"2¹⁶": 1 << 16, "2³²": 1 << 32}
    below = re.search(r"below (2\S+?)(?:,|$)", kind)
    if below is not None:
        assert refused(decode, {**whole, key: powers[below[1]]}), f"{name} {key}"
        assert not refused(decode, {**whole, key: powers[below[1]] - 1}), f"{name} {key}"
    size = re.match(r"bin of (\d+)", kind)
    if size is not None:
        assert not refused(decode, {**whole, key: bytes(int(size[1]))}), f"{name} {key}"
        assert refused(decode, {**whole, key: bytes(int(size[1]) + 1)}), f"{name} {key}"
    if "1 to 2³² − 1" in kind:
        assert refused(decode, {**whole, key: 0})
        assert refused(decode, {**whole, key: 1 << 32})
        assert not refused(decode, {**whole, key: (1 << 32) - 1})


def check_starts(document: Document) -> None:
    rows = document.table(9, "| `start` | begins")
    forms = [re.findall(r"`(\{.*?\})`", start) for start, _, _ in rows]
    assert [form[0] for form in forms] == [
        '{"from": "new"}',
        '{"from": "start"}',
        '{"positions": [[channel, epoch, sequence], …]}',
        '{"bus": [journal, group, index]}',
        '{"time_us": t}',
        '{"last": n}',
    ]
    values: list[Any] = [
        {"from": "new"}, {"from": "start"}, {"positions": [["a", 1, 2]]}, {"bus": [bytes(16), 1, (1 << 32) - 1]},
        {"time_us": (1 << 64) - 1}, {"last": 0},
    ]  # fmt: skip
    decoded = [control.decode_start(value) for value in values]
    assert [type(item) for item in decoded] == [
        control.FromNew, control.FromStart, control.FromPositions, control.FromBus, control.FromTime, control.FromLast
    ]  # fmt: skip
    outcomes = [name.strip("`") for name, _, _ in document.table(9, "| outcome |")]
    assert outcomes == ["new", "resumed", "trimmed", "diverged"]


# -- hex ---------------------------------------------------------------------------------------------------------------


def recoded(frame: bytes) -> bytes:
    """Decode a frame by our codec and encode what came out."""
    kind, body = Kind(frame[4]), frame[8:]
    return RECODE[kind](body)


def recode_published(body: bytes) -> bytes:
    entries = sequencer.PUBLISHED.iter_unpack(body)
    return control.frame(Kind.PUBLISHED, b"".join(sequencer.PUBLISHED.pack(*entry) for entry in entries))


def recode_jobs(jobs: consuming.Jobs) -> bytes:
    body = b""
    for job in jobs.jobs:
        name = job.name or b""
        flags = (kinds.JobFlag.REDELIVERED if job.redelivered else 0) | (kinds.JobFlag.NAME if name else 0)
        size = consuming.JOB.size + len(name) + len(job.record)
        place = job.channel, job.epoch, job.sequence, job.time_us
        body += consuming.JOB.pack(size, *place, job.attempt, int(flags), len(name), 0) + name + job.record
    header = consuming.JOBS_HEADER.pack(jobs.subscription, len(jobs.jobs), jobs.jobs[0].lease, jobs.lease_ms, 0)
    return control.frame(Kind.JOBS, header + body)


def recode_hello(body: bytes) -> bytes:
    hello = control.decode_hello(body)
    return control.encode_hello(hello.client, hello.producer, hello.token)


def recode_error(body: bytes) -> bytes:
    refusal = control.decode_error(body)
    return control.encode_error(
        refusal.failure,
        subscription=refusal.subscription,
        request=refusal.request,
        channel=refusal.channel,
        number=refusal.number,
        count=refusal.count,
        asked=refusal.asked,
        replied=refusal.replied,
        ack=refusal.ack,
        lease=refusal.lease,
        leases=refusal.leases,
        head=getattr(refusal.failure, "head", None),
        index=getattr(refusal.failure, "index", None) or None,
    )


def recode_request(body: bytes) -> bytes:
    request = control.decode_request(body)
    return keys_as(body, control.encode_request(request.request, request.op, request.more))


def recode_reply(body: bytes) -> bytes:
    return keys_as(body, control.encode_reply(*control.decode_reply(body)))


def recode_event(body: bytes) -> bytes:
    event = control.decode_event(body)
    return keys_as(body, control.encode_event(event.subscription, event.event, event.channel, event.more))


def keys_as(body: bytes, frame: bytes) -> bytes:
    """Return the frame if it holds the same map; further keys come first or last, and order means nothing."""
    assert control.decode(body) == control.decode(frame[8:])
    return control.frame(frame[4], body)


RECODE: dict[Kind, Callable[[bytes], bytes]] = {
    Kind.HELLO: recode_hello,
    Kind.WELCOME: lambda body: control.encode_welcome(control.decode_welcome(body)),
    Kind.ERROR: recode_error,
    Kind.PING: lambda body: control.encode_ping(control.decode_token(body)),
    Kind.PONG: lambda body: control.encode_pong(control.decode_token(body)),
    Kind.GOING_AWAY: lambda body: control.encode_going_away(*control.decode_going_away(body)),
    Kind.CHANNEL: lambda body: control.encode_channel(*control.decode_channel(body)),
    Kind.SUBSCRIBE: lambda body: control.encode_subscribe(control.decode_subscribe(body)),
    Kind.SUBSCRIBED: lambda body: control.encode_subscribed(control.decode_subscribed(body)),
    Kind.UNSUBSCRIBE: lambda body: control.encode_unsubscribe(control.decode_unsubscribe(body)),
    Kind.UNSUBSCRIBED: lambda body: control.encode_unsubscribed(control.decode_unsubscribe(body)),
    Kind.EVENT: recode_event,
    Kind.REQUEST: recode_request,
    Kind.REPLY: recode_reply,
    Kind.PUBLISHED: recode_published,
    Kind.CREDIT: lambda body: control.encode_credit(*control.decode_credit(body)),
    Kind.ACK: lambda body: consuming.encode_ack(*consuming.decode_ack(body)),
    Kind.ACKED: lambda body: consuming.encode_acked(*consuming.decode_acked(body)),
    Kind.JOBS: lambda body: recode_jobs(consuming.decode_jobs(body)),
}


def read_batch(frame: bytes) -> Any:
    reader = FrameReader(error, 1 << 20)
    reader.add_route(int.from_bytes(frame[8:12], "little"), "target", "s.chat")
    found = reader.feed(frame)
    assert reader.failure is None, reader.failure
    return found[0][1]


def recode_deliver(frame: bytes) -> bytes:
    """Read a delivery as a client does, and build it from what the client sees."""
    batch = read_batch(frame)
    body = b""
    for message in batch:
        body += build_record(
            Record(
                message.payload,
                time_us=message.time - batch.time_us,
                priority=None if message.priority == kinds.Priority.NORMAL else message.priority,
                expiry_s=message.expiry_s,
                key=message.key,
                headers=control.pack_headers(message.headers) if message.headers else None,
            )
        )
    chunk = build_chunk(Chunk(batch.channel_id, batch.epoch, batch.first, len(batch), body, batch.time_us))
    flags = frame[5]
    name = bytes([len(batch.channel)]) + batch.channel.encode() if flags & kinds.DeliverFlag.NAME else b""
    assert batch.early == bool(flags & kinds.DeliverFlag.EARLY)
    header = struct.pack("<IIQ", batch.subscription, batch.index, batch.group)
    return control.frame(Kind.DELIVER, header + name + chunk, flags)


def read_publish(frame: bytes) -> tuple[int, tuple[int, int] | None, Any]:
    """Read a PUBLISH: its first number, the head that it expects, and its records as a client would read them."""
    _, count, first = struct.unpack_from("<IIQ", frame, 8)
    fixed = 24
    expect = None
    if frame[5] & kinds.PublishFlag.EXPECT:
        fixed += kinds.PUBLISH_EXPECT_BYTES
        expect = struct.unpack_from("<QQ", frame, 24)
    if frame[5] & kinds.PublishFlag.AT:
        fixed += 8
    chunk = build_chunk(Chunk(1, 1, 1, count, frame[fixed:]))
    return first, expect, read_batch(control.frame(Kind.DELIVER, struct.pack("<IIQ", 1, 0, 0) + chunk))


def publish_buffer() -> PublishBuffer:
    return PublishBuffer(
        None,  # type: ignore[arg-type]
        error=error,
        check_channel=check_channel,
        pack_headers=control.pack_headers,
        kick=lambda: None,
        bytes_max=1 << 20,
    )


def recode_publish(frame: bytes) -> bytes:
    """Publish what a PUBLISH says with the client's buffer."""
    first, expect, batch = read_publish(frame)
    buffer = publish_buffer()
    buffer.resume(first - 1)
    assert int.from_bytes(frame[8:12], "little") == 0
    for message in batch:
        fields = (message.payload, message.headers or None, message.key, message.priority, message.expiry_s)
        if frame[5] & kinds.PublishFlag.AT:
            (when,) = struct.unpack_from("<Q", frame, 24)
            at = frame.index(b"alarm-7")
            buffer.schedule("s.chat", message.payload, when, frame[at : at + 7])
        elif expect is None:
            buffer.post("s.chat", *fields)
        else:
            buffer.publish("s.chat", *fields, expect=expect)
    block = buffer.take()
    assert block is not None
    return frames(bytes(block))[1]


def recode_named(frame: bytes) -> bytes:
    """Read a PUBLISH of requests or replies as the server does, and send it as a client does."""
    asked = control.decode_named(frame[8:])
    return control.encode_named(frame[5], asked.name, asked.number, asked.count, frame[8 + asked.at :])


def recode_transaction(frame: bytes) -> bytes:
    """Publish what a TRANSACTION says with the client's buffer; channel n is named n."""
    buffer = publish_buffer()
    draft = Draft(buffer)
    inner = frames(frame[8 + kinds.TRANSACTION_HEADER_BYTES :])
    for one in inner:
        _, expect, [message] = read_publish(one)
        channel = f"s.{int.from_bytes(one[8:12], 'little')}"
        draft.publish(
            channel, message.payload, message.headers or None, message.key, message.priority, message.expiry_s, expect
        )
    buffer.resume(read_publish(inner[0])[0] - 1)
    draft.send()
    block = buffer.take()
    assert block is not None
    return frames(bytes(block))[-1]


def is_legal(frame: bytes) -> bool:
    """Whether a server takes a PUBLISH of the conversation; one of it is wrong on purpose."""
    return b"bad" not in frame


def check_hex_block(block: str) -> bytes:
    lines = block.splitlines()
    data = bytes_of(lines)
    found = frames(data)
    assert lines == [line.rstrip() for frame in found for line in annotate(frame)]
    for frame in found:
        kind = Kind(frame[4])
        if kind is Kind.DELIVER:
            assert recode_deliver(frame) == frame
        elif kind is Kind.PUBLISH and frame[5]:
            assert recode_named(frame) == frame
        elif kind is Kind.PUBLISH:
            assert not is_legal(frame) or recode_publish(frame) == frame
        elif kind is Kind.TRANSACTION:
            assert recode_transaction(frame) == frame
        else:
            assert recoded(frame) == frame
    return data


def check_examples(document: Document) -> None:
    headings = re.findall(r"^### (.*)$", document.sections[16], re.M)
    blocks = document.blocks(16, "hex")
    assert headings == list(EXAMPLES)
    assert {heading.split(",")[0] for heading in headings} == {kind.name for kind in Kind}
    for heading, (_, block) in zip(headings, blocks, strict=True):
        data = check_hex_block(block)
        assert data == EXAMPLES[heading], heading
        assert Kind(data[4]).name == heading.split(",")[0]


def check_conversation(document: Document) -> None:
    blocks = document.blocks(17, "hex")
    said = [({"client": ">", "server": "<"}[side], bytes_of(block.splitlines())) for side, block in blocks]
    played = [(step.what, step.data) for step in conversation().steps if step.what != "!"]
    assert said == played
    for _, block in blocks:
        check_hex_block(block)


def check_magic(document: Document) -> None:
    found = re.search(r"the (\d) bytes `([0-9a-f ]+)` \(\"BROKER\", 0, 1\)", document.prose(5))
    assert found is not None
    assert bytes.fromhex(found[2]) == kinds.HELLO_MAGIC
    assert int(found[1]) == len(kinds.HELLO_MAGIC)
    assert f"this one is {kinds.VERSION} |" in document.sections[5]
    assert document.text.startswith(f"# The native protocol, version {kinds.VERSION}\n")


# -- states ------------------------------------------------------------------------------------------------------------

LEGAL = {
    "HELLO": (EXAMPLES["HELLO"], b""),
    "CHANNEL": (control.encode_channel(0, b"s.x"), control.encode_channel(0, b"$x")),
    "PUBLISH": (control.encode_channel(0, b"s.x") + publish(0, 1, b"x"), publish(7, 1, b"x")),
    "PUBLISH with ASK": (named(PublishFlag.ASK, b"s.x", 1, b"x"), named(PublishFlag.ASK, b"e.x", 1, b"x")),
    "PUBLISH with REPLY": (
        named(PublishFlag.REPLY, b"$reply." + b"token 0000000001".hex().encode(), 1, b"x"),
        named(PublishFlag.REPLY, b"$reply.x", 1, b"x"),
    ),
    "TRANSACTION": (
        control.encode_channel(0, b"s.x") + transaction(publish(0, 1, b"x")),
        transaction(publish(7, 1, b"x")),
    ),
    "SUBSCRIBE": (
        control.encode_subscribe(control.Subscribe(1, ("s.x",), 1)),
        control.encode_subscribe(control.Subscribe(1, ("..",), 1)),
    ),
    "UNSUBSCRIBE": (
        control.encode_subscribe(control.Subscribe(1, ("s.x",), 1)) + control.encode_unsubscribe(1),
        control.encode_unsubscribe(2),
    ),
    "CREDIT": (control.encode_credit(1, 1), b""),
    "ACK": (EXAMPLES["ACK"], b""),
    "REQUEST": (control.encode_request(1, "channel", {"name": "s.x"}), control.encode_request(1, "dance")),
    "PING": (control.encode_ping(1), b""),
    "PONG": (control.encode_pong(1), b""),
}
"""Of each frame that a client sends one that is good, behind what it needs, and one that is refused."""
ILLEGAL = {
    "any other kind": [control.frame(kind, b"") for kind in (0, 2, 3, 6, 9, 11, 12, 14, 15, 17, 18, 21, 22, 255)],
    "flags or reserved not zero, a body that is not as drawn": [
        control.frame(Kind.PING, bytes(8), flags=1),
        bytes.fromhex("0800000004000100"),
        control.frame(Kind.HELLO, b"short"),
        control.frame(Kind.PUBLISH, bytes(32), flags=128),
    ],
    "a body over the limit": [struct.pack("<IBBH", 1 << 31, Kind.PUBLISH, 0, 0)],
}


def answer(stage: Stage, frame: bytes) -> str:
    """Say in the table's words what the stage's newest client gets for a frame."""
    client = stage.clients["client"]
    stage.feed("client", frame)
    stage.settle()
    received = frames(client.take())
    if not received:
        assert not client.closed
        return "no answer"
    last = received[-1]
    if last[4] != Kind.ERROR:
        assert not client.closed
        return Kind(last[4]).name
    refusal = control.decode_error(last[8:])
    keys = [
        key
        for key in ("subscription", "request", "channel", "number", "asked", "replied", "count")
        if getattr(refusal, key) is not None
    ]
    assert client.closed == (not keys)
    return "ERROR with " + " and ".join(f"`{key}`" for key in keys) if keys else f"`{refusal.failure.name}`, end"


def fresh(*, is_open: bool) -> Stage:
    stage = Stage()
    stage.connect("asker")
    stage.feed("asker", control.encode_hello("asker"))
    stage.connect("client")
    if is_open:
        assert answer(stage, EXAMPLES["HELLO"]) == "WELCOME"
    return stage


def check_states(document: Document) -> None:
    rows = {name: cells for name, *cells in document.table(6, "| frame | GREETING")}
    assert set(rows) == {*LEGAL, *ILLEGAL}
    for name, (good, bad) in LEGAL.items():
        greeting, is_open = rows[name]
        said = is_open.split(";")[0].split(", or ")
        last = frames(good)[-1]
        assert answer(fresh(is_open=False), last) == greeting.split(", or ")[0], name
        assert answer(fresh(is_open=True), good) == said[0], name
        assert len(said) == 1 + bool(bad), name
        if bad:
            assert answer(fresh(is_open=True), bad) == said[1], name
    for name, wrong in ILLEGAL.items():
        for frame in wrong:
            assert answer(fresh(is_open=False), frame) == rows[name][0], (name, frame)
            if frame[4] != Kind.HELLO:
                assert answer(fresh(is_open=True), frame) == rows[name][1], (name, frame)


# -- prose -------------------------------------------------------------------------------------------------------------


def check_headings(document: Document) -> None:
    """The contents are the headings; sections and steps are numbered without gap."""
    headings = re.findall(r"^## (\d+)\. (.*)$", document.text, re.M)
    assert [int(index) for index, _ in headings] == list(range(1, len(headings) + 1))
    contents = re.findall(r"\[(\d+) ([^]]+)\]\(#([^)]+)\)", document.text.split("## 1.")[0].replace("\n", " "))
    assert [(index, title) for index, title, _ in contents] == headings
    for index, title, anchor in contents:
        assert anchor == f"{index}-" + re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
    due = 1
    for line in document.text.splitlines():
        step = re.match(r"(\d+)\. ", line)
        if step is not None:
            assert int(step[1]) in (1, due), line
            due = int(step[1]) + 1
        elif line and not line.startswith(" "):
            due = 1


def check_powers(document: Document) -> None:
    """Powers of two are those that the layouts and the credit have, each where it belongs."""
    powers = re.findall(r"(\d+)([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", document.text)
    assert set(powers) == {("2", power) for power in ("¹⁶", "³²", "⁴⁰", "⁶⁴")}
    assert document.text.count("2⁴⁰") == 5
    assert document.text.count("2⁶⁴") == document.text.count("2¹⁶") == 1


def check_line_table(document: Document) -> None:
    """The line's table says what a core answers, for every small line and frame."""
    rows = document.table(8, "| | answer")
    signs = {"−": "-", "≤": "<=", "≥": ">=", " = ": " == ", ", or": " or", ", *n*": " and *n*"}
    for highest in range(4):
        for first in range(6):
            for count in range(1, 5):
                said = []
                for condition, words in rows:
                    asked = condition
                    for sign, python in signs.items():
                        asked = asked.replace(sign, python)
                    if eval(asked.replace("*", ""), {}, {"h": highest, "n": first, "c": count}):
                        said.append(words)
                assert len(said) == 1, (highest, first, count)
                line_answers(highest, first, count, said[0])
    assert rows[1][1].startswith(f"duplicate: PUBLISHED with flag {kinds.PUBLISHED_FLAG_DUPLICATE}.")


def line_answers(highest: int, first: int, count: int, said: str) -> None:
    line = Line()
    tails = Tails(1, 1)
    tails.load(b"s.x", Level.SYNCED, 2, 100)
    publisher = Publisher(tails, line, None, 100)
    publisher.bind(0, b"s.x")
    if highest:
        assert publisher.publish_frame(publish(0, 1, *[b"x"] * highest)[8:]) == 0
    code = publisher.publish_frame(publish(0, first, *[b"x"] * count)[8:])
    if code == 0:
        assert said == "it is taken; *h* becomes *h* + *c*"
        assert line.next - 1 == highest + count
    elif code == CODES["DUPLICATE"]:
        assert said.startswith("duplicate")
    else:
        assert said == f"`{BY_CODE[code].name}`"


def check_bus_lag(document: Document) -> None:
    """How far an EARLY chunk vouches is what our client builds on."""
    place = BusPlace(control.FromNew())
    place.subscribed(control.Subscribed(1, (), control.FromBus(bytes(16), 3, 0)))
    frame = deliver(CHUNK, group=9, index=5, name=b"a.x", flags=int(kinds.DeliverFlag.EARLY))
    place.accept(read_batch(frame))
    reached = place.bus_position
    assert reached is not None
    assert reached.index == (1 << 32) - 1
    lag = 9 - reached.group
    prose = document.prose(11)
    assert f"everything up to and including group *g* − {lag}." in prose
    assert f"If group > {lag}, the place becomes (group − {lag}, 2³² − 1) if that is further." in prose


def check_conversation_words(document: Document) -> None:
    """The words between the conversation's frames are those of its trace."""
    words = " ".join(document.prose(17).split())
    said = " ".join(" ".join(step.notes) for step in conversation().steps if step.notes)
    assert words.endswith(said)


def check_references(document: Document) -> None:
    """Codes, ports and sections that the text refers to are there."""
    assert set(re.findall(r"\| as (\d+) \|", document.sections[14])) == {str(BY_NAME["STORAGE_CORRUPT"].code)}
    assert f"{BY_NAME['COMMIT_UNKNOWN'].code} leaves the outcome unknown" in document.sections[14]
    for section in re.findall(r"(?<!RFC 3720 )§(\d+)", document.text):
        assert int(section) in document.sections
    assert f"(port {ServerConfig().tcp.rpartition(':')[2]} unless" in document.prose(1)


CLAIMS = [
    (15, f"of an IPv6 address its /{IPV6_BITS} counts"),
    (18, f"A message that was given up {TIMES_MAX} times is not copied again"),
    (1, "takes nothing else there: 1.2 or 1.3, with ephemeral keys"),
    (
        1,
        f"an alert, `{NO_TLS.hex(' ').upper()}`, and whom the server has no room for one as well, "
        f"`{REFUSAL.hex(' ').upper()}`, in place of",
    ),
    (1, "unsigned and little-endian: `u8`, `u16`, `u32`, `u64`."),
    (1, "broker time: microseconds since 1970-01-01 00:00 UTC."),
    (2, "| PONG | both | u64 token"),
    (4, "in seconds since 1970,"),
    (1, "A **sequence** numbers the records of a channel, dense, from 1."),
    (1, "compared for equality only, and 0 means none"),
    (2, "`flags` is 0 in every kind but DELIVER (§10) and PUBLISH (§7)"),
    (7, f"(frame flag {int(kinds.PublishFlag.EXPECT)})"),
    (7, "(0, 0) is that of a channel which never had a record"),
    (7, f"has {kinds.PUBLISH_HEADER_BYTES + kinds.PUBLISH_EXPECT_BYTES} bytes; in step 1 it is these"),
    (7, "Between steps 5 and 6 the channel must be a stored one"),
    (7, "behind step 6 its head must be the one"),
    (7, f"(frame flag {int(PublishFlag.AT)}) has its records published later"),
    (7, "`when` is microseconds since 1970 or, with the top bit set,"),
    (7, f"Its fixed part has {layout()['PUBLISH_HEADER_BYTES'] + layout()['PUBLISH_AT_BYTES']} bytes, and each record"),
    (7, f"(level {int(Level.SYNCED)} whatever the channel's), by PUBLISHED entries"),
    (7, f"with flag {layout()['PUBLISHED_FLAG_DELAYED']} *delayed*: `epoch` is 0, and"),
    (7, "due, in microseconds since 1970; as a *duplicate* as well"),
    (7, "A server that is not overloaded does so within 50 ms of its time,"),
    (7, "`ids_window_s` (0: of none)"),
    (13, f"`limit`: uint, 1 to {DELAYED_MAX:,}, optional; `after`: bin, optional"),
    (13, f"`id`: bin, 1 to {ID_BYTES_MAX} bytes |"),
    (7, "The frames are PUBLISH, with flag 0 or EXPECT"),
    (7, "then ACK (§18) with number 0"),
    (7, "steps 2 and 3 for each, 4 and 5 for all the numbers together"),
    (7, "stored ones, step 6 for each and that no record has an ID"),
    (5, f"It keeps them within {AHEAD_BYTES_MAX:,} bytes"),
    (14, "`retry_after_ms` comes with codes of 1xxx and 2xxx."),
    (14, "(0, 0) without any record |"),
    (14, "is at fault, from 0; not there"),
    (3, f"its {kinds.RECORD_HEADER_BYTES}-byte header included"),
    (3, "In a PUBLISH it is sent as 0 and not looked at"),
    (3, "It stands for `run` sequences, from 1,"),
    (4, f"CRC-32C of the bytes from {struct.calcsize('<II')} to `size`"),
    (4, "sequence of its first record, from 1 |"),
    (4, "sequences that it covers, from 1: one for each record"),
    (4, "| `flags` | 0 |"),
    (4, "0 when no record has one"),
    (4, "The last sequence is `first + count − 1`."),
    (5, "0 for a line without numbers or a HELLO without producer"),
    (5, "13. 0: never |"),
    (5, f"The {len(kinds.HELLO_MAGIC)} bytes are the same in all versions."),
    (5, f"offers `[{kinds.VERSION}, {kinds.VERSION + 1}]` and goes on"),
    (5, "Its 2 seconds begin then."),
    (7, "The client chooses the numbers, dense from 0:"),
    (7, "the numbers `number` to `number + count − 1` have the sequences `first` to `first + count − 1`"),
    (7, "A duplicate with epoch 0 and first 0 was"),
    (7, "`number` from 1, and the last number is a u64 as well"),
    (7, "`$reply.<32 hex digits>.<number>`"),
    (7, "`subscription` 0, without any SUBSCRIBE: `index` and `group` are 0"),
    (7, "an ASK are the requests `number` to `number + count − 1`"),
    (7, "(A PUBLISH whose `count` was 0 is refused with `count` 0.)"),
    (8, "The line is dense: 1, 2, 3, …"),
    (8, "the answer may say epoch 0 and first 0."),
    (8, "(all codes of 1xxx)"),
    (8, "a code of 1xxx other than `NUMBER_GAP`"),
    (8, "numbered from *h* + 1."),
    (8, "the client goes on from *h* + 1 all the same"),
    (8, f"answered with level {int(Level.SYNCED)} or higher"),
    (8, "makes a line that begins with 1 and ends with the connection"),
    (9, "| `subscription` | uint, 1 to 2³² − 1 |"),
    (9, f"`journal` bin of {kinds.JOURNAL_BYTES}, `index` uint below 2³²,"),
    (9, "A position with sequence 0 is the very beginning."),
    (9, f"An index of 2³² − {(1 << 32) - INDEX_END} is the end of its group."),
    (9, "the head's sequence, 0 for an empty channel"),
    (9, "0 while it has had no record, and with a bus position"),
    (9, "`start`, `last` and the position (0, 0) begin new"),
    (9, "at the sequence behind which they begin, 0 for the first;"),
    (9, "oldest record there is has another sequence than 1."),
    (9, "(`at` = head + 1)"),
    (9, "a code of 4xxx when the log"),
    (10, "`u8 length, bytes` of the channel's name"),
    (10, "Chunks of ephemeral channels have group 0 and no place."),
    (10, "`first` and `count` are from 1;"),
    (10, "the server sends only when credit is above 0, and stops when it is used up;"),
    (10, "the last chunk may take it below 0."),
    (10, "credit may go below 0 by `limits.subscription_bytes_max`"),
    (11, "For `trimmed` it is (epoch, `at` − 1)."),
    (11, "*f* = *s* + 1: new as a whole"),
    (11, "*f* > *s* + 1: records between were trimmed"),
    (11, "the channel diverged at *f* − 1; new as a whole"),
    (11, "is listed as (0, 0) if the subscription"),
    (11, "with a group *g* above 0,"),
    (11, "unless the group is 0:"),
    (11, "those of the same group too if the index is 2³² − 1."),
    (11, "The client says that each channel diverged at 0,"),
    (11, "goes on with (0, 0) for each."),
    (11, "comes again, and step 2 drops it"),
    (12, "except as §11 step 2 says"),
    (13, "`{request: uint below 2³², op: str, …}`"),
    (13, "`epoch`: uint, 0 when it has had no record;"),
    (13, "1 when there is none; `head`: uint, the newest, 0 when there is none;"),
    (13, "It looks at this every `ping_s` / 3 or so"),
    (13, f"`limit`: uint, 1 to {NAMES_MAX:,}, optional; `details`"),
    (13, "with it and above 0, (`after_epoch`, `after`) is a position"),
    (13, "| `limit` | uint, from 1, optional |"),
    (13, "| `lagging` | `limit`: uint, from 1, optional |"),
    (13, "| `bytes` | uint, from 1, optional | at most"),
    (13, "| `bytes` | uint, from 1, optional | as above |"),
    (13, "or a code of 4xxx. **`channels`**"),
    (13, "broker time, 0 for what has not happened: of its group"),
    (13, "| `trace` | `channel`: str; `sequence`: uint, from 1 |"),
    (13, "| `trim` | `name`: str; `first`: uint, from 1 |"),
    (13, "sequences begin with 1, in another epoch."),
    (13, "carry a u64 token"),
    (13, "is treated as the codes of 2xxx are"),
    (15, "duplicate with epoch 0 |"),
    (14, "(§18) | | `lease` | uint, optional | with `ack`: the first of the leases"),
    (18, "counted from 0, has the lease `lease` + i."),
    (18, "from the moment at which the server sent it; 0: for ever."),
    (18, "Without NAME `name_size` is 0."),
    (18, "but its own `time_us` is 0:"),
    (18, "`attempt` counts from 1;"),
    (18, "counts the ACKs of the subscription: 1, 2, 3, … without gap."),
    (18, "from `lease` on, at least 1. `ms` is 0 unless said."),
    (18, "`ms` from now; 0: as long as it did at first"),
    (18, "are done; `leases` is 1 |"),
    (18, "a code of 4xxx."),
    (18, "`member` is 0 unless one has it"),
    (18, "| `consumers` | `prefix`, `after`: str, optional; `limit`: uint, from 1, optional |"),
    (18, "| `consumer_peek` | `name`: str; `limit`: uint, from 1, optional |"),
    (18, "`held_channels`, `held_bytes`: uint, left out when 0,"),
    (19, "(RFC 6455, version 13, no extensions)"),
    (19, "asks for `/v1/socket` (port 4780 unless said otherwise) with the subprotocol `broker.v1`;"),
    (19, "with close code 1003, what breaks RFC 6455 with 1002, a WebSocket frame that is too large with 1009."),
    (19, "4000 + 100 × the thousand of `code` + the rest, so that 3004 `BAD_STATE` is 4304,"),
    (
        19,
        "41xx may be tried again later, 42xx and what ends without a Close frame is resumed, 43xx is not repeated,",
    ),
    (19, "43xx is not repeated, 44xx is storage."),
    (19, "403 for a request whose `Host`"),
    (19, "400 and 426 for a handshake that is none, 404 for another path, and 503 with `Retry-After`"),
]
"""Sentences with a number in them that no other check computes; a trace of tests/golden shows what each says."""


def check_claims(document: Document) -> None:
    for section, claim in CLAIMS:
        assert claim.lower() in " ".join(document.sections[section].split()).lower(), claim


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_") and "document" in
          getattr(value, "__annotations__", {})]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_document_says_what_the_code_does(check: Callable[[Document], None]) -> None:
    check(Document(TEXT))


# -- the judge ---------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"0x[0-9A-Fa-f]+|\d[\d,]*\d|\d|[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
NAMES = re.compile(
    r"§[\d.]+|RFC \d+ §[\d.]+|CRC-32C|UTF-8|version 1|some\s+100\s+ms|^```(?:hex|chunk).*?^```$", re.M | re.S
)
"""Where a number is a name or a rough duration, and blocks that are compared as a whole."""
STRIDE = 7
"""Every so many numbers one is planted wrong; with 1 it takes a quarter of a minute."""


def numbers_of(text: str) -> list[tuple[int, int]]:
    """Return where the numbers of the document are."""
    hidden = [found.span() for found in NAMES.finditer(text)]
    spans = [found.span() for found in NUMBER.finditer(text)]
    return [(start, end) for start, end in spans if not any(low <= start < high for low, high in hidden)]


def another(shown: str) -> str:
    """Return a number that is not this one, written the same way."""
    if shown.startswith("0x"):
        return shown[:-1] + ("1" if shown[-1] == "0" else "0")
    if not shown[0].isascii():
        return shown[:-1] + ("³" if shown[-1] == "²" else "²")
    value = int(shown.replace(",", "")) + 1
    return f"{value:,}" if "," in shown else str(value)


def holds(text: str) -> bool:
    """Whether no check fails; those that only look at hex are left out."""
    for check in CHECKS:
        if check not in (check_states, check_examples, check_conversation):
            try:
                check(Document(text))
            except (AssertionError, LookupError, ValueError, StopIteration):
                return False
    return True


def test_a_wrong_number_fails() -> None:
    places = numbers_of(TEXT)
    assert len(places) > 400
    missed = []
    for start, end in places[::STRIDE]:
        if holds(TEXT[:start] + another(TEXT[start:end]) + TEXT[end:]):
            missed.append((TEXT.count("\n", 0, start) + 1, TEXT[start:end]))
    assert not missed


def test_a_wrong_byte_of_an_example_fails() -> None:
    blocks = [found for found in re.finditer(r"^```hex.*?^```$", TEXT, re.M | re.S)]
    for found in blocks[::6]:
        at = TEXT.index("\n", found.start()) + 1
        wrong = Document(TEXT[:at] + ("0" if TEXT[at] != "0" else "1") + TEXT[at + 1 :])
        failed = 0
        for check in (check_examples, check_conversation):
            try:
                check(wrong)
            except (AssertionError, LookupError, ValueError):
                failed += 1
        assert failed == 1
