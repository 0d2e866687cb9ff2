"""URLs of brokers: what is one, what is none, and what that is told."""

from __future__ import annotations

import pytest

from broker.model.errors import ConfigError
from broker.remote.address import Address, TcpAddress, TlsAddress, UnixAddress, WebAddress, parse_url, parse_web_url


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        ("broker://localhost", TcpAddress("localhost", 4770), "localhost:4770"),
        ("broker://127.0.0.1:1", TcpAddress("127.0.0.1", 1), "127.0.0.1:1"),
        ("broker://[::1]:65535/", TcpAddress("::1", 65535), "[::1]:65535"),
        ("broker+tls://b.example", TlsAddress("b.example", 4770), "b.example:4770"),
        (
            "broker+tls://[::1]:1?ca=/a%20b.pem&name=b.example&certificate=c.pem&key=k.pem",
            TlsAddress("::1", 1, "/a b.pem", "b.example", "c.pem", "k.pem"),
            "[::1]:1",
        ),
        ("broker+unix:///run/broker.sock", UnixAddress("/run/broker.sock"), "/run/broker.sock"),
        ("broker+unix:///a%20b", UnixAddress("/a b"), "/a b"),
    ],
)
def test_urls(url: str, address: Address, shown: str) -> None:
    assert parse_url(url) == address
    assert str(parse_url(url)) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:4770",
        "http://localhost",
        "broker://",
        "broker://:4770",
        "broker://host:0",
        "broker://host:65536",
        "broker://host:port",
        "broker://host/path",
        "broker://user@host",
        "broker://host?x=1",
        "broker://host#x",
        "broker://[::1",
        "broker+tls://",
        "broker+tls://host/path",
        "broker+tls://host?other=x",
        "broker+tls://host?ca=",
        "broker+tls://host?ca",
        "broker+tls://host?ca=a&ca=b",
        "broker+tls://host?key=k.pem",
        "broker+tls://host?ca=a%00",
        "brokers://host",
        "broker+unix://path",
        "broker+unix://host/path",
        "broker+unix:///",
        "broker+unix:///a%00b",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="ADDRESS"):
        parse_url(url)


def test_urls_of_websockets() -> None:
    assert parse_web_url("broker://host") is None
    assert parse_web_url("ws://host:4780") == WebAddress("host", 4780, "/v1/socket", False)
    secure = parse_web_url("wss://10.0.0.7?ca=ca.pem&name=b.example")
    assert secure == WebAddress("10.0.0.7", 443, "/v1/socket", True, "ca.pem", "b.example")
    assert secure.expected == "b.example"


@pytest.mark.parametrize("url", ["ws://host?ca=x", "wss://host?other=x", "wss://host?key=k", "ws://user@host"])
def test_what_is_no_url_of_a_websocket(url: str) -> None:
    with pytest.raises(ConfigError, match="ADDRESS"):
        parse_web_url(url)
