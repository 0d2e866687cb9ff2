"""Completion of channels' names, asked from the broker that the command line names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

COMPLETE_SECONDS = 0.5
"""A shell waits for its completion: a broker that takes longer completes nothing."""
COMPLETE_COUNT = 50


def complete_channel(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of stored channels that begin with what is typed; none if no broker answers."""
    import asyncio

    from broker.model.errors import BrokerError
    from broker.remote.address import URL_DEFAULT

    async def ask() -> list[str]:
        from broker import connect

        async with asyncio.timeout(COMPLETE_SECONDS), connect(url) as bus:
            return [channel.name async for channel in bus.channels(incomplete, limit=COMPLETE_COUNT)]

    url = ctx.params.get("url") or os.environ.get("BROKER_URL") or URL_DEFAULT
    try:
        return asyncio.run(ask())
    except (BrokerError, OSError, TimeoutError):
        return []
