"""The `broker` command: one module a verb, each with a click command called `command`.

A verb imports what it needs inside its function, so that `broker --help` and shell completion stay quick. It lets
`BrokerError` rise to `main`, which prints it and picks the exit code, and returns None or an `ExitCode`.
"""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from broker.model.errors import Remedy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.model.errors import BrokerError


class ExitCode(IntEnum):
    """What the exit status of `broker` means to a script."""

    OK = 0
    WRONG = 1
    """It ran, and the result is not right: a lost message, a failed check."""
    USAGE = 2
    """The command line is wrong."""
    RETRY = 3
    """The same command may succeed later."""
    RESUME = 4
    """The connection ended; go on from the last position."""
    STOP = 5
    """The request is wrong or forbidden; repeating it cannot help."""
    STORAGE = 6
    """The disk refused, is damaged or in use, or the outcome is not known."""
    INTERRUPTED = 130
    """Ctrl-C, as a shell reports SIGINT."""
    BROKEN_PIPE = 141
    """Whoever read the output has gone, as a shell reports SIGPIPE."""


_EXIT_CODES: Mapping[Remedy, ExitCode] = MappingProxyType(
    {
        Remedy.RETRY: ExitCode.RETRY,
        Remedy.RESUME: ExitCode.RESUME,
        Remedy.STOP: ExitCode.STOP,
        Remedy.STORAGE: ExitCode.STORAGE,
    }
)


def exit_code_of(failure: BrokerError) -> ExitCode:
    """Return the exit status for an error: its remedy's."""
    return _EXIT_CODES[failure.remedy]
