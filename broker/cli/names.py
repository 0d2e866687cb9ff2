"""Completion of the names of channels and consumers, asked from the broker that the command line names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import click

    from broker.bus import Bus

COMPLETE_SECONDS = 0.5
"""A shell waits for its completion: a broker that takes longer completes nothing."""
COMPLETE_COUNT = 50


def complete_channel(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of stored channels that begin with what is typed; none if no broker answers."""

    async def ask(bus: Bus) -> list[str]:
        return [channel.name async for channel in bus.channels(incomplete, limit=COMPLETE_COUNT)]

    return complete(ctx, ask)


def complete_consumer(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of consumers and work queues that begin with what is typed; none if no broker answers."""

    async def ask(bus: Bus) -> list[str]:
        return [info.settings.name async for info in bus.consumers(incomplete, limit=COMPLETE_COUNT)]

    return complete(ctx, ask)


def complete(ctx: click.Context, ask: Callable[[Bus], Awaitable[list[str]]]) -> list[str]:
    """Return what the broker of the command line answers, if it does so in time."""
    import asyncio

    from broker.model.errors import BrokerError
    from broker.remote.address import URL_DEFAULT

    async def connect_and_ask(url: str) -> list[str]:
        from broker import connect

        async with asyncio.timeout(COMPLETE_SECONDS), connect(url) as bus:
            return await ask(bus)

    url = ctx.params.get("url") or os.environ.get("BROKER_URL") or URL_DEFAULT
    try:
        return asyncio.run(connect_and_ask(url))
    except (BrokerError, OSError, TimeoutError):
        return []
