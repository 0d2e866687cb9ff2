"""`broker serve` whose archiver waits for nothing: `python -m tests.fault.early serve …`. The rest is the product's.

FAULT_PLANT=wall makes the mistake that ages are judged by the wall clock alone; a test must find it.
"""

from __future__ import annotations

import os
import sys

from broker.cli.main import main
from broker.log import archiving
from broker.log.archiving import Archiving
from broker.node.time import BrokerTime

RETRY_S = 0.05


def hurry() -> None:
    """Have slices begin at once, and a child that died be started again soon."""
    defaults = Archiving.__init__.__kwdefaults__
    assert defaults is not None
    defaults.update(wait_s=0.0)
    archiving.RETRY_S = RETRY_S


def plant_wall() -> None:
    """Judge ages by a clock that may be anything."""
    BrokerTime.ages_us = lambda self: self._wall_us()  # type: ignore[method-assign]


if __name__ == "__main__":
    hurry()
    if os.environ.get("FAULT_PLANT") == "wall":
        plant_wall()
    sys.exit(main())
