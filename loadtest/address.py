"""A look at the address before anything is started: whether a broker answers there, and lets us in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.blocking import connect
from broker.model.errors import BrokerError

if TYPE_CHECKING:
    from loadtest.plan import Plan

LOOK_TIMEOUT_S: Final = 5.0
NOBODY: Final = frozenset({"CONNECTION_LOST", "TIMEOUT", "MALFORMED_FRAME", "FRAME_TOO_LARGE"})
"""Failures to connect that say that no broker is there, or something else than a broker."""


def complaint_of(url: str, plan: Plan) -> str | None:
    """Connect and leave again. Returns what is wrong with the address, or None."""
    wait_s = min(LOOK_TIMEOUT_S, plan.patience)
    try:
        with connect(url, token=plan.token or None, timeout_s=wait_s, connect_timeout_s=wait_s):
            return None
    except BrokerError as failure:
        if failure.name in NOBODY:
            return f"{url}: no broker answers there: {failure.detail}"
        return f"{url}: {failure}" + (f" ({failure.hint})" if failure.hint else "")
