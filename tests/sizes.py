"""How much of a proof a run of the tests does: the part that a change deserves, or the whole (`make proofs`).

One proof has a size of its own when the environment names it: `BROKER_KILLS=1000`.
"""

from __future__ import annotations

import os

__all__ = ["size"]


def size(name: str, part: int, whole: int) -> int:
    """Return how many of something a proof takes.

    Args:
        name: The variable that sets this one alone.
        part: What every run takes.
        whole: What the documents quote; taken when BROKER_PROOFS is 1.
    """
    return int(os.environ.get(name, whole if os.environ.get("BROKER_PROOFS") == "1" else part))
