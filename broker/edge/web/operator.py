"""Who may look inside: whoever may manage every channel, as `stats` of the native protocol has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.access.gate import Verb

if TYPE_CHECKING:
    from broker.edge.web.api import Call

__all__ = ["check_operator"]


async def check_operator(call: Call) -> None:
    """Return if who asks may look inside.

    Raises:
        BrokerError: Its token is none that the broker takes, or DENIED.
    """
    call.node.gate.check(await call.identity(), Verb.MANAGE, b">")
