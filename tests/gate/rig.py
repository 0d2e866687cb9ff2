"""A guarded broker in this process: an access file that a test rewrites, tokens for its users, and connections."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import joserfc.jwk
import joserfc.jwt

from broker import connect
from broker.access.authority import Authority
from broker.config import Config
from broker.edge.native import NativeListener
from broker.edge.web.server import WebServer
from broker.embedded import open_bus
from broker.model.limits import Limits
from broker.model.profiles import Profiles
from broker.node.node import Node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from broker.client.client import Client
    from broker.model.profiles import Profile

KEY = {"kty": "oct", "kid": "k1", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}
Grants = "Mapping[str, Sequence[str]]"
"""Filters by verb."""


def token(user: str, *, seconds: float = 3600.0, id: str = "") -> str:
    """Return a signed token of a user, good for so many seconds."""
    claims: dict[str, Any] = {
        "iss": "test",
        "aud": "broker",
        "sub": user,
        "roles": [user],
        "exp": time.time() + seconds,
    }
    if id:
        claims["jti"] = id
    return joserfc.jwt.encode({"alg": "HS256", "kid": "k1"}, claims, joserfc.jwk.import_key(KEY))  # type: ignore[arg-type]


class Guarded:
    """A node, its authority and its listener.

    Args:
        folder: Where the access file and the data are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "access.toml"
        self._changed = asyncio.Event()
        self.node: Node
        self.address = self.web_address = ""

    def write(self, users: Mapping[str, Mapping[str, Sequence[str]]], more: str = "") -> None:
        """Write an access file in which each user has a role of his own."""
        rows = [
            '[jwt]\nalgorithms = ["HS256"]\nissuer = "test"\naudience = "broker"\nleeway_s = 0\nkeys = "keys.json"\n'
        ]
        for user, grants in users.items():
            rows.append(f'[roles."{user}"]\n')
            rows += [f"{verb} = {json.dumps(list(filters))}\n" for verb, filters in grants.items() if filters]
        fresh = self._folder / "access.new"
        fresh.write_text("".join(rows) + more)
        fresh.chmod(0o600)
        fresh.rename(self._path)

    async def change(self, users: Mapping[str, Mapping[str, Sequence[str]]], more: str = "") -> None:
        """Write another one, and wait until it is in force."""
        self._changed.clear()
        self.write(users, more)
        await asyncio.wait_for(self._changed.wait(), 5)

    @asynccontextmanager
    async def open(self, profiles: Sequence[Profile] = (), limits: Limits | None = None) -> AsyncIterator[Guarded]:
        keys = self._folder / "keys.json"
        keys.write_text(json.dumps({"keys": [KEY]}))
        keys.chmod(0o600)
        loop = asyncio.get_running_loop()
        authority = Authority(str(self._path), loop.call_soon_threadsafe, poll_s=0.02)
        try:
            self.node = await Node.open(
                self._folder / "data",
                profiles=Profiles(profiles),
                limits=limits or Limits(),
                segment_bytes=8 << 20,
                reserve_bytes=0,
                authority=authority,
            )
            authority.on_change.append(self._changed.set)
            listener = NativeListener(self.node)
            try:
                self.address = await listener.listen_tcp("127.0.0.1", 0)
                await listener.listen_unix(str(self._folder / "socket"))
                web = WebServer.open(self.node, Config(), listener, open_bus)
                self.web_address = web.listen("127.0.0.1", 0)
                try:
                    yield self
                finally:
                    await web.close(1.0)
            finally:
                listener.stop_accepting()
                await self.node.drain(1.0)
                await self.node.close()
        finally:
            authority.close()

    def bus(self, user: str, **options: Any) -> AbstractAsyncContextManager[Client]:
        """Connect as a user."""
        return connect(f"broker://{self.address}", **{"token": token(user), **options})

    def home_bus(self, home: str, **options: Any) -> AbstractAsyncContextManager[Client]:
        """Connect to one of the homes of the server: tcp, unix or ws."""
        urls = {
            "tcp": f"broker://{self.address}",
            "unix": f"broker+unix://{self._folder / 'socket'}",
            "ws": f"ws://{self.web_address}",
        }
        return connect(urls[home], **options)

    def unix_bus(self, **options: Any) -> AbstractAsyncContextManager[Client]:
        """Connect by the Unix socket, without a token."""
        return connect(f"broker+unix://{self._folder / 'socket'}", **options)
