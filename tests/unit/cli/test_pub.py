"""How input is cut into messages: at every split, to the last byte, and within bounds."""

from __future__ import annotations

import pytest

from broker.cli import pub
from broker.cli.pub import Cutter, Framed, Lines, Whole
from broker.model.errors import BrokerError

FRAMED = b"\0\0\0\0" + b"\3\0\0\0abc" + b"\1\0\0\0\n"


def cut(cutter: Cutter, *pieces: bytes) -> list[bytes]:
    return [message for piece in pieces for message in cutter.feed(piece)] + cutter.finish()


@pytest.mark.parametrize(
    ("kind", "given", "messages"),
    [
        (Lines, b"", []),
        (Lines, b"\n", [b""]),
        (Lines, b"a\nb", [b"a", b"b"]),
        (Lines, b"a\r\n\r\nb\rc\n", [b"a", b"", b"b\rc"]),
        (Framed, b"", []),
        (Framed, FRAMED, [b"", b"abc", b"\n"]),
        (Whole, b"", [b""]),
        (Whole, b"a\nb", [b"a\nb"]),
    ],
)
def test_every_split_gives_the_same_messages(kind: type[Cutter], given: bytes, messages: list[bytes]) -> None:
    assert cut(kind(), given) == messages
    assert cut(kind(), *(given[at : at + 1] for at in range(len(given)))) == messages
    for at in range(len(given)):
        assert cut(kind(), given[:at], given[at:]) == messages


@pytest.mark.parametrize("rest", [b"\1", b"\3\0\0\0ab"])
def test_input_that_ends_within_a_message_is_refused(rest: bytes) -> None:
    with pytest.raises(BrokerError, match="INVALID_RECORD"):
        cut(Framed(), FRAMED, rest)


@pytest.mark.parametrize(("kind", "given"), [(Lines, b"12345"), (Framed, b"\5\0\0\0"), (Whole, b"12345")])
def test_a_message_without_end_is_refused(kind: type[Cutter], given: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pub, "MESSAGE_BYTES_MAX", 4)
    with pytest.raises(BrokerError, match="PAYLOAD_TOO_LARGE"):
        kind().feed(given)
