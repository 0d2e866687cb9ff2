"""TLS as bytes: whatever is said on one side comes out at the other, however the bytes between are cut."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.access.issuing import Issuer
from broker.wire.secure import NO_TLS, REFUSAL, SLICE_BYTES, SecureStream
from tests.sizes import size

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = size("BROKER_SECURE_EXAMPLES", 30, 2_000)
ROOM_MAX = 40_000
ALERTS = {REFUSAL: "tlsv1 alert internal error", NO_TLS: "unexpected message"}


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    folder: Path = tmp_path_factory.mktemp("tls")
    issuer = Issuer()
    issued = issuer.issue_server(["here.example"])
    (folder / "all.pem").write_bytes(issued.certificate + issued.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "all.pem")
    return server, ssl.create_default_context(cadata=issuer.certificate.decode())


def move(source: SecureStream, sink: SecureStream) -> None:
    """Carry what one has to say to the other."""
    data = source.take()
    for start in range(0, len(data), SLICE_BYTES):
        sink.feed(data[start : start + SLICE_BYTES])


def meet(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> tuple[SecureStream, SecureStream]:
    """Return the server's and the client's end of a connection that has shaken hands."""
    server, client = SecureStream(contexts[0]), SecureStream(contexts[1], "here.example")
    for _ in range(4):
        if not client.opened:
            client.shake_hands()
        move(client, server)
        if not server.opened:
            server.shake_hands()
        move(server, client)
    assert server.opened
    assert client.opened
    return server, client


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(st.integers(0, 3 * SLICE_BYTES), max_size=6),
    st.lists(st.integers(1, 5 * SLICE_BYTES), min_size=1, max_size=6),
    st.integers(1, ROOM_MAX),
    st.booleans(),
)
def test_what_is_sealed_is_unsealed(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], sizes: list[int], cuts: list[int], room: int, backwards: bool
) -> None:
    """In either direction, in pieces of any size, cut anywhere, into a buffer of any size."""
    server, client = meet(contexts)
    source, sink = (client, server) if backwards else (server, client)
    said = [bytes([number]) * length for number, length in enumerate(sizes)]
    sealed = source.take() + b"".join(piece for data in said for piece in source.seal(data))
    buffer, heard, at, turn = memoryview(bytearray(room)), bytearray(), 0, 0
    while at < len(sealed):
        cut = cuts[turn % len(cuts)]
        for part in sink.unseal(memoryview(sealed)[at : at + cut], buffer):
            heard += part
        at, turn = at + cut, turn + 1
    assert heard == b"".join(said)
    assert not sink.ended
    farewell = source.farewell()
    assert not list(sink.unseal(memoryview(farewell), buffer))
    assert sink.ended


def test_what_was_changed_on_the_way_is_refused(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, client = meet(contexts)
    sealed = bytearray(b"".join(server.seal(b"secret")))
    assert b"secret" not in sealed
    sealed[-1] ^= 1
    with pytest.raises(ssl.SSLError):
        list(client.unseal(memoryview(server.take() + bytes(sealed)), memoryview(bytearray(100))))


@pytest.mark.parametrize("alert", [REFUSAL, NO_TLS])
def test_what_a_refused_client_is_told(contexts: tuple[ssl.SSLContext, ssl.SSLContext], alert: bytes) -> None:
    client = SecureStream(contexts[1], "here.example")
    assert not client.shake_hands()
    client.feed(alert)
    with pytest.raises(ssl.SSLError) as told:
        client.shake_hands()
    assert ALERTS[alert] in str(told.value.reason).lower().replace("_", " ")


def test_a_farewell_before_the_handshake_is_none(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    assert SecureStream(contexts[0]).farewell() == b""
