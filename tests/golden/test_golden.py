"""The golden traces: a session says the same bytes however a client's bytes arrive, and a client reads them the same.

A trace that no longer fits is either a mistake in the code, or a change of the protocol on purpose: see `record`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker.model.errors import error
from broker.wire import control
from broker_native.messages import FrameReader
from tests.golden.annotate import annotate, bytes_of, frames
from tests.golden.conversations import CONVERSATIONS
from tests.golden.document import refresh
from tests.golden.publishing import BufferClient
from tests.golden.record import SPECIFICATION, TRACES
from tests.golden.script import Trace, play

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = sorted(CONVERSATIONS)


def read(name: str) -> Trace:
    return Trace.parse((TRACES / f"{name}.trace").read_text())


def test_there_is_a_trace_of_each_conversation() -> None:
    assert sorted(path.stem for path in TRACES.glob("*.trace")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_is_what_is_played_now(name: str) -> None:
    text = (TRACES / f"{name}.trace").read_text()
    assert CONVERSATIONS[name]().render() == text, "see tests/golden/record.py"
    assert Trace.parse(text).render() == text


def test_the_specification_holds_the_same_bytes() -> None:
    text = SPECIFICATION.read_text()
    assert refresh(text) == text, "see tests/golden/record.py"


# -- the server --------------------------------------------------------------------------------------------------------


def cut_at(place: int) -> Any:
    """Return what cuts bytes in two after `place` of them."""
    return lambda data: [piece for piece in (data[:place], data[place:]) if piece]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def frames_apart(trace: Trace) -> bool:
    """Whether the client never sends two frames at a time, so that turns between its pieces change nothing."""
    return all(len(frames(step.data)) <= 1 for step in trace.steps if step.what == ">")


@pytest.mark.parametrize("name", NAMES)
def test_a_session_does_not_care_how_bytes_arrive(name: str) -> None:
    """Whole, byte by byte, and cut at every place of every frame."""
    trace = read(name)
    longest = max(len(step.data) for step in trace.steps if step.what == ">")
    for apart in [False, True] if frames_apart(trace) else [False]:
        play(trace, bytewise, apart=apart)
        for place in range(longest):
            play(trace, cut_at(place), apart=apart)


# -- the client --------------------------------------------------------------------------------------------------------


def streams(trace: Trace) -> Iterator[bytes]:
    """Yield what each connection of a trace receives."""
    received: dict[str, bytes] = {}
    for step in trace.steps:
        words = step.words.split()
        if step.what == "<":
            received[step.words] = received.get(step.words, b"") + step.data
        elif step.what == "!" and words[0] == "connect":
            yield received.pop(words[1], b"")
    yield from received.values()


def decode(pieces: list[bytes]) -> list[Any]:
    """Read a stream as the client does, and name everything that is in it."""
    reader = FrameReader(error, 1 << 20)
    for number in range(32):
        reader.add_route(number, number, "literal")
    found: list[Any] = []
    for piece in pieces:
        for item in reader.feed(piece):
            if len(item) == 2:
                batch = item[1]
                messages = [(message.sequence, message.time, message.payload, message.key) for message in batch]
                found.append((item[0], batch.channel, batch.epoch, batch.group, batch.index, batch.early, messages))
            else:
                found.append(item)
    assert reader.failure is None, reader.failure
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_client_does_not_care_how_bytes_arrive(name: str) -> None:
    for stream in streams(read(name)):
        whole = decode([stream])
        assert len(whole) == len(frames(stream))
        assert decode(bytewise(stream)) == whole
        for place in range(1, len(stream)):
            assert decode([stream[:place], stream[place:]]) == whole


def published(cut: Any) -> list[bytes]:
    """Play the client's side of the conversation `publishing`; returns what it sends."""
    client = BufferClient()
    sent = []
    due = b""
    for step in read("publishing").steps:
        if step.words == "connect client":
            due = client.connect()
        elif step.what == "<":
            due = b"".join(client.feed(piece) for piece in cut(step.data))
        elif step.what == ">":
            sent.append(due or client.say_more())
            due = b""
    assert not client.buffer.records_unanswered
    return sent


def test_a_publishing_buffer_does_not_care_how_answers_arrive() -> None:
    steps = read("publishing").steps
    expected = [step.data for step in steps if step.what == ">"]
    assert published(bytewise) == expected
    for place in range(max(len(step.data) for step in steps if step.what == "<")):
        assert published(cut_at(place)) == expected


# -- the judge ---------------------------------------------------------------------------------------------------------


def places_of(data: bytes, meaning: str) -> set[int]:
    """Return the places of a field's bytes in some frames."""
    places, at = set(), 0
    for frame in frames(data):
        for line in annotate(frame):
            size = len(bytes_of([line]))
            if meaning in line:
                places |= set(range(at, at + size))
            at += size
    return places


@pytest.mark.parametrize("side", [">", "<"])
def test_a_wrong_byte_fails(side: str) -> None:
    """A byte that is wrong on either side makes a replay fail, but for what the server does not look at."""
    last = [step for step in read("line").steps if step.what == side][-1].data
    missed = set()
    for at in range(len(last)):
        trace = read("line")
        step = [step for step in trace.steps if step.what == side][-1]
        step.data = last[:at] + bytes([last[at] ^ 1]) + last[at + 1 :]
        try:
            play(trace, lambda data: [data], apart=False)
        except AssertionError:
            continue
        missed.add(at)
    # A PUBLISH's time is not looked at, and nobody reads this payload.
    unseen = [places_of(last, meaning) for meaning in ("time_us", "payload")] if side == ">" else []
    assert missed == set().union(*unseen)


def test_bytes_that_never_come_fail() -> None:
    trace = read("line")
    trace.steps.pop()
    with pytest.raises(AssertionError, match="nobody expected"):
        play(trace, lambda data: [data], apart=False)


def test_a_line_without_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="no bytes"):
        bytes_of(["no bytes here"])
    with pytest.raises(ValueError, match="no line"):
        Trace.parse("# title\nnonsense\n")


def test_what_is_refused_to_a_producer_comes_back_to_it() -> None:
    """The refusals of a trace are read as the errors that they are."""
    failures = [
        control.decode_error(frame[8:])
        for step in read("refusals").steps
        if step.what == "<"
        for frame in frames(step.data)
        if frame[4] == 3
    ]
    assert {refusal.failure.name for refusal in failures} == {
        "INVALID_CHANNEL", "DENIED", "NO_PROFILE", "PAYLOAD_TOO_LARGE", "NUMBER_GAP", "HEADERS_TOO_LARGE",
        "INVALID_RECORD", "TOO_MANY_CHANNELS",
    }  # fmt: skip
