"""Who is asked back: the names under which connections are sent replies, for as long as they live.

A name ends with bytes that nobody can guess, and only the connection itself is told it; it hands it on with what it
asks. So holding a name is the right to reply to it, and nothing else is kept of a request.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.node.node import Connection

REPLY_PREFIX = b"$reply."
TOKEN_BYTES = 16


def draw_token() -> bytes:
    """Return what nobody can guess."""
    return secrets.token_bytes(TOKEN_BYTES)


class Replies:
    """The names of one node's connections.

    Args:
        draw: Where the bytes come from that nobody can guess.

    Attributes:
        requests_unheard: Requests of ephemeral channels to which nobody listened.
        replied: Replies that were handed to the connection that had asked.
        replies_unheard: Those whose connection had gone.
    """

    def __init__(self, draw: Callable[[], bytes] = draw_token) -> None:
        self.draw = draw
        self.requests_unheard = 0
        self.replied = 0
        self.replies_unheard = 0
        self._names: dict[bytes, Connection] = {}

    def add(self, connection: Connection) -> bytes:
        """Give a connection its name."""
        name = REPLY_PREFIX + self.draw().hex().encode()
        self._names[name] = connection
        return name

    def remove(self, name: bytes) -> None:
        """The connection has gone."""
        self._names.pop(name, None)

    def find(self, name: bytes) -> Connection | None:
        """Return the connection with this name; None when there is none, any more."""
        return self._names.get(name)

    def stats(self) -> dict[str, object]:
        """Return the counters under the names by which `stats` tells them."""
        return {
            "requests_unheard": self.requests_unheard,
            "replies_out": self.replied,
            "replies_unheard": self.replies_unheard,
        }
