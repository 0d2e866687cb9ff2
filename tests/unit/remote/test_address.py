"""URLs of brokers: what is one, what is none, and what that is told."""

from __future__ import annotations

import pytest

from broker.model.errors import ConfigError
from broker.remote.address import TcpAddress, UnixAddress, parse_url


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        ("broker://localhost", TcpAddress("localhost", 4770), "localhost:4770"),
        ("broker://127.0.0.1:1", TcpAddress("127.0.0.1", 1), "127.0.0.1:1"),
        ("broker://[::1]:65535/", TcpAddress("::1", 65535), "[::1]:65535"),
        ("broker+unix:///run/broker.sock", UnixAddress("/run/broker.sock"), "/run/broker.sock"),
        ("broker+unix:///a%20b", UnixAddress("/a b"), "/a b"),
    ],
)
def test_urls(url: str, address: TcpAddress | UnixAddress, shown: str) -> None:
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
        "broker+unix://path",
        "broker+unix://host/path",
        "broker+unix:///",
        "broker+unix:///a%00b",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="ADDRESS"):
        parse_url(url)
