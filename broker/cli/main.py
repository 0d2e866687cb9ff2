"""The group `broker`, and the edge at which errors become one line and an exit status.

A verb's module is imported when the verb is run, not before: `broker --help` names them all and imports none.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from broker._version import __version__
from broker.cli import ExitCode, exit_code_of
from broker.model.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

PROGRAM = "broker"

VERBS: Mapping[str, str] = MappingProxyType(
    {
        "serve": "Run the server on TCP and a Unix socket.",
        "pub": "Publish lines, a file or length-prefixed bytes.",
        "sub": "Print what arrives on channels.",
        "request": "Ask a channel, and print the reply.",
        "reply": "Answer what is asked of channels.",
        "history": "Print what is stored of a channel.",
        "channel": "List channels, trim or remove one.",
        "consumer": "Readers with a name, whose place the broker keeps.",
        "queue": "Work queues: look into one, work one off.",
        "delayed": "List messages that wait for their time, cancel one.",
        "top": "Watch a running server, and who is behind.",
        "trace": "Follow one message to the disk and to its readers.",
        "bench": "Measure the broker and verify every message.",
        "backup": "Copy a broker's data, running or not.",
        "restore": "Make a data directory of a backup.",
        "compact": "Give the disk back what was taken out.",
        "dump": "Write stored messages as JSON lines.",
        "load": "Publish what dump wrote.",
        "verify": "Prove the files of a data directory or a backup.",
        "demo": "Publish a corpus, kill the broker, resume, and judge.",
        "cert": "Make certificates to develop with.",
        "config": "Check a configuration, or show the effective one.",
        "token": "Make tokens, try them, explain them.",
        "errors": "Explain the error codes.",
        "events": "Explain the events of the log.",
        "metrics": "Explain the metrics, or print the dashboard.",
        "version": "Print the versions of the broker and what it runs on.",
    }
)
"""Every verb with its one line of help. Verb `x` is `command` of `broker.cli.x`."""

_EPILOG = """\b
Exit status: 0 done, 1 wrong result, 2 usage, 3 retry later, 4 reconnect and
resume, 5 do not repeat, 6 storage, 130 interrupted, 141 output closed.

\b
Shell completion:
  bash  eval "$(_BROKER_COMPLETE=bash_source broker)"
  zsh   eval "$(_BROKER_COMPLETE=zsh_source broker)"
  fish  _BROKER_COMPLETE=fish_source broker | source
"""


class VerbGroup(click.Group):
    """A group whose commands are modules that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = import_module(f"broker.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(verb, help=line) for verb, line in VERBS.items() if verb.startswith(incomplete)]
        # Options of the group; the base class of groups would import every verb to describe it.
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
        except BrokenPipeError:
            _abandon_output()
            return ExitCode.BROKEN_PIPE
        return result if _flush_output() else ExitCode.BROKEN_PIPE


@click.group(name=PROGRAM, cls=VerbGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name=PROGRAM, message="%(prog)s %(version)s")
def command() -> None:
    """An ordered-log message bus: durable channels that readers resume exactly."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None means `sys.argv[1:]`.

    Returns:
        The exit status. Errors of the broker and of usage are printed to stderr; a bug keeps its traceback.
    """
    try:
        result = command.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except BrokerError as failure:
        _print_error(failure)
        _flush_output()
        return exit_code_of(failure)
    except click.ClickException as failure:
        failure.show()
        return failure.exit_code
    except click.Abort:
        return ExitCode.INTERRUPTED
    return result if isinstance(result, int) else ExitCode.OK


def _print_error(failure: BrokerError) -> None:
    """Print an error and what to do about it. A server's words are not trusted to be clean of control characters."""
    click.echo(f"error {printable(str(failure))}", err=True)
    click.echo(f"hint: {printable(failure.hint)}", err=True)


def printable(text: str) -> str:
    """Return a text in which whatever a terminal would act on is escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _flush_output() -> bool:
    """Write what is still buffered, so that a closed pipe shows here and not in the interpreter's last breath.

    Returns:
        False if whoever read stdout has gone.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_output()
        return False
    return True


def _abandon_output() -> None:
    """Point stdout at nothing, so that no later flush complains about the reader that has gone."""
    # In a test stdout may have no descriptor, and then nothing flushes it at exit either.
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
