"""Who becomes a WebSocket, who is answered, and what a request may cost before anybody knows what it is."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.independent import frames
from tests.web.peer import BINARY, Peer, frame, handshake

if TYPE_CHECKING:
    from tests.contract.homes import Server

HELLO = frames.hello([1], "a peer", None, None)


def request(host: str, *lines: str, target: str = "/v1/version", method: str = "GET", version: str = "1.1") -> bytes:
    """Return an HTTP request without a body."""
    return "\r\n".join([f"{method} {target} HTTP/{version}", f"Host: {host}", *lines, "", ""]).encode()


def test_a_browser_that_says_more_of_the_connection_is_taken(peer: Peer) -> None:
    peer.upgrade(Connection="keep-alive, Upgrade", User_Agent="Mozilla/5.0", Upgrade="WebSocket")
    peer.send(frame(BINARY, HELLO))
    assert peer.read_frame() is not None


def test_frames_in_the_same_read_as_the_request_are_heard(peer: Peer) -> None:
    peer.send(handshake(peer.address) + frame(BINARY, HELLO))
    assert peer.read_head()[0] == 101
    got = peer.read_frame()
    assert got is not None
    assert got.payload[4] == frames.Kind.WELCOME


def test_a_request_may_come_byte_by_byte_and_behind_another_one(peer: Peer) -> None:
    for wanted, data in ((200, request(peer.address)), (200, request(peer.address)), (101, handshake(peer.address))):
        for byte in data:
            peer.send(bytes([byte]))
        status, headers = peer.read_head()
        assert status == wanted
        if wanted == 200:
            peer.read_body(headers)


def test_the_first_subprotocol_that_is_known_is_agreed_on(peer: Peer) -> None:
    peer.send(handshake(peer.address, protocol="chat, broker.v9 ,broker.v1"))
    status, headers = peer.read_head()
    assert (status, headers["sec-websocket-protocol"]) == (101, "broker.v1")


REFUSED = {
    "another path": (404, {"path": "/"}),
    "a path below": (404, {"path": "/v1/socket/x"}),
    "an older version": (426, {"Sec_WebSocket_Version": "8"}),
    "no version": (426, {"Sec_WebSocket_Version": ""}),
    "no key": (400, {"Sec_WebSocket_Key": ""}),
    "a short key": (400, {"Sec_WebSocket_Key": "c2hvcnQ="}),
    "a key that is no base64": (400, {"Sec_WebSocket_Key": "!" * 24}),
    "no subprotocol that is known": (400, {"protocol": "chat"}),
    "a page of somebody else": (403, {"Origin": "https://evil.example"}),
    "a page without an origin": (403, {"Origin": "null"}),
    "a page of another port": (403, {"Origin": "http://127.0.0.1:1"}),
    "a name that is not ours": (403, {"Host": "evil.example"}),
    "a name that begins as ours": (403, {"Host": "localhost.evil.example"}),
    "another port of a name with one": (403, {"Host": "other.example:8081"}),
}


@pytest.mark.parametrize(("status", "more"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_handshake_for_us_is_refused(peer: Peer, status: int, more: dict[str, str]) -> None:
    peer.send(handshake(peer.address, **more))
    got, headers = peer.read_head()
    assert got == status
    assert peer.read_body(headers)
    if status == 426:
        assert headers["sec-websocket-version"] == "13"
    assert not peer.read(1)


@pytest.mark.parametrize(
    "more",
    [
        {"Origin": "https://app.example"},
        {"Origin": "HTTPS://APP.example"},
        {"Host": "broker.example"},
        {"Host": "broker.example:4780", "Origin": "https://broker.example:4780"},
        {"Host": "other.example:8080"},
        {"Host": "localhost:4780", "Origin": "http://localhost:4780"},
        {"Host": "[::1]:4780"},
    ],
)
def test_names_and_origins_that_are_ours_are_taken(peer: Peer, more: dict[str, str]) -> None:
    peer.upgrade(**more)


def test_two_hosts_are_none(peer: Peer) -> None:
    peer.send(request(peer.address, f"Host: {peer.address}"))
    assert peer.read_head()[0] in (400, 403)


def test_http_is_judged_by_the_same_names(server: Server) -> None:
    for status, lines in ((200, []), (403, ["Origin: https://evil.example"]), (200, ["Origin: https://app.example"])):
        with Peer(server.web) as peer:
            peer.send(request(peer.address, *lines))
            got, headers = peer.read_head()
            assert got == status
            assert peer.read_body(headers)
            assert headers["x-content-type-options"] == "nosniff"
            assert headers.get("access-control-allow-origin") == (
                "https://app.example" if "app" in str(lines) else None
            )


def test_a_page_may_ask_before_it_asks(peer: Peer) -> None:
    lines = ["Origin: https://app.example", "Access-Control-Request-Method: POST"]
    peer.send(request(peer.address, *lines, method="OPTIONS"))
    status, headers = peer.read_head()
    assert (status, headers["access-control-allow-origin"]) == (200, "https://app.example")


@pytest.mark.parametrize("end", ["\r\n", ""])
def test_a_head_without_end_is_cut_off(peer: Peer, end: str) -> None:
    peer.send(f"GET / HTTP/1.1\r\nHost: {peer.address}\r\n".encode())
    with pytest.raises((ConnectionError, EOFError)):  # noqa: PT012  the answer may come while we still send
        for number in range(200):
            peer.send(f"X-{number}: {'y' * 1000}{end}".encode())
            time.sleep(0.001)
        status, _ = peer.read_head()
        assert status == 400
        raise EOFError


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_who_says_nothing_or_half_a_request_is_ended(peer: Peer, said: bytes) -> None:
    peer.send(said)
    begun = time.monotonic()
    with suppress(ConnectionError):
        assert not peer.read(1)
    assert 0.5 < time.monotonic() - begun < 5


def test_a_websocket_without_hello_is_ended(socket: Peer) -> None:
    closing = socket.read_close()
    assert closing.payload[2:] == b"TIMEOUT"


def test_pipelined_requests_have_a_bound(peer: Peer) -> None:
    peer.send(request(peer.address) * 2_000)
    answered = 0
    with suppress(ConnectionError, EOFError):
        while peer.read_head()[0] == 200:
            peer.read(6)
            answered += 1
    assert answered < 2_000


def test_what_is_no_http_is_answered_400_and_ended(peer: Peer) -> None:
    peer.send(b"\x16\x03\x01 hello\r\n\r\n")
    assert peer.read_head()[0] == 400


def test_an_upgrade_to_something_else_is_an_ordinary_request(peer: Peer) -> None:
    peer.send(request(peer.address, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAAA"))
    assert peer.read_head()[0] == 200
