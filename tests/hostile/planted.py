"""A server without one of its defences: `python -m tests.hostile.planted DEFENCE serve …`.

The tests of a defence attack this one too, and must find what it lets through.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from broker.cli.main import main
from broker.node import node

if TYPE_CHECKING:
    from collections.abc import Callable


def without_turns() -> None:
    """Every frame that has come is handled at once."""
    node.Node._schedule_put_off = None  # type: ignore[assignment]


def without_pause_for_answers() -> None:
    """Nobody looks whether a peer takes its answers."""
    node.ANSWERS_BYTES_MAX = 1 << 60


DEFENCES: dict[str, Callable[[], None]] = {"turns": without_turns, "answers": without_pause_for_answers}

if __name__ == "__main__":
    DEFENCES[sys.argv.pop(1)]()
    sys.exit(main())
