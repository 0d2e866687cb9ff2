"""A connection that comes to nothing: what is said of it, and what is not."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any, cast

import pytest

from broker.client.connection import Connection
from broker.model.errors import BrokerError
from broker.wire import control

if TYPE_CHECKING:
    from broker.client.connection import Owner
    from broker.client.transport import Receiver, Transport

HELLO = control.encode_hello("a")


class Silent:
    """An owner that is told nothing before the handshake is over."""

    def on_published(self, body: bytes) -> None:
        raise AssertionError(body)

    on_jobs = on_acked = on_published


def connection() -> Connection:
    return Connection(asyncio.get_running_loop(), cast("Owner", Silent()))


async def test_a_socket_that_fails_after_its_end_is_the_only_complaint(loop_exceptions: list[dict[str, Any]]) -> None:
    """A server that is killed resets the connection before its socket has all its options."""

    async def reset(receiver: Receiver) -> Transport:
        receiver.on_lost(ConnectionResetError("reset"))
        raise OSError("an option of a socket that is closed")

    with pytest.raises(OSError, match="option"):
        await connection().open(reset, HELLO, 10)
    gc.collect()
    await asyncio.sleep(0)
    assert loop_exceptions == []


async def test_an_end_before_the_welcome_is_raised() -> None:
    class Gone:
        def writelines(self, pieces: list[bytes]) -> None:
            assert pieces == [HELLO]

        def abort(self) -> None:
            """There is nothing left to end."""

    async def reset(receiver: Receiver) -> Transport:
        receiver.on_lost(ConnectionResetError("reset"))
        return cast("Transport", Gone())

    with pytest.raises(BrokerError, match=r"CONNECTION_LOST.*reset"):
        await connection().open(reset, HELLO, 10)
