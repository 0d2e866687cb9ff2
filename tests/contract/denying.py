"""A broker at which nobody may manage anything: `python -m tests.contract.denying serve …`. Else it is
the product."""

from __future__ import annotations

import sys
from unittest.mock import patch

from broker.access.gate import Gate, Identity, Verb
from broker.cli.main import main
from broker.model.errors import error
from broker.model.names import display

_check = Gate.check


def check(self: Gate, identity: Identity, verb: Verb, name: bytes) -> None:
    """Refuse to manage, and ask the gate about all else."""
    _check(self, identity, verb, name)
    if verb is Verb.MANAGE:
        raise error("DENIED", f"{verb} {display(name)}: asked by {identity.user or identity.peer}")


if __name__ == "__main__":
    with patch.object(Gate, "check", check):
        sys.exit(main())
