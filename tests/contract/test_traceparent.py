"""Trace Context is the users': its headers come out of every home as they went in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.contract.homes import Home

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"


@pytest.mark.parametrize("level", ["e", "a", "s"])
async def test_trace_context_is_carried_untouched(home: Home, room: str, level: str) -> None:
    channel = f"{level}.{room}"
    headers = {"traceparent": PARENT, "tracestate": STATE, "other": 7}
    async with home.bus() as bus, bus.subscribe(channel) as reader:
        await bus.publish(channel, b"x", headers=headers)
        message = await anext(aiter(reader))
        assert message.headers == headers
        if level != "e":
            assert [each.headers async for each in bus.history(channel)] == [headers]
