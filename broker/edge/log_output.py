"""How the server's log is written: a line for people or one JSON object, with the same events and fields.

    2026-11-22T16:03:33.123Z INFO reloaded waiting=server.tcp
    {"time": "2026-11-22T16:03:33.123Z", "level": "info", "event": "reloaded", "waiting": "server.tcp"}

Whatever else runs in the process speaks here too: libraries' loggers, warnings, exceptions that nobody caught in the
loop, in a thread or in a finalizer become events of the registry. A line is printable ASCII; a traceback follows its
line, each line of it behind `  | `, or is a field in JSON. So nothing that a peer sent can forge a record.

Only a process that is a server's own sets this up: it takes the root logger and the interpreter's hooks.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from broker.events import Said, admit, emit, text_value
from broker.model.events import EVENT_BY_NAME

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType
    from typing import TextIO

    from broker.events import Value

__all__ = ["JsonLines", "TextLines", "set_log_level", "set_up_log", "watch_loop"]

_MESSAGE_CHARS_MAX = 4_096
"""Of what a library logged; the rest is cut off."""
_TRACEBACK_CHARS_MAX = 16_384
"""Of a traceback, from its end: the text of an exception may be as long as what a peer sent."""
_LIBRARY_LOG = EVENT_BY_NAME["library_log"].name


def record_parts(record: logging.LogRecord) -> tuple[str, str, str, dict[str, Value]]:
    """Return a record's time (RFC 3339, UTC, ms), level, event and fields; a foreign one is `library_log`."""
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    level = record.levelname.lower()
    if isinstance(record.msg, Said):
        return when, level, record.msg.event.name, dict(record.msg.fields)
    try:
        message = record.getMessage()
    except Exception as mistake:  # a library's format does not fit its arguments
        message = f"{record.msg!r}: {mistake!r}"
    fields: dict[str, Value] = {"logger": record.name, "message": message[:_MESSAGE_CHARS_MAX]}
    left_out = getattr(record, "left_out", 0)
    return when, level, _LIBRARY_LOG, fields | ({"suppressed": left_out} if left_out else {})


def is_admitted(record: logging.LogRecord) -> bool:
    """Return whether a record is written (a filter of `logging`); what others log is bounded like an event."""
    if isinstance(record.msg, Said):
        return True
    allowed, record.left_out = admit(_LIBRARY_LOG)
    return allowed


class TextLines(logging.Formatter):
    """`time LEVEL event key=value …`, and a traceback indented behind bars."""

    def format(self, record: logging.LogRecord) -> str:
        when, level, event, fields = record_parts(record)
        lines = [" ".join([when, level.upper(), event, *(f"{k}={text_value(v)}" for k, v in fields.items())])]
        if record.exc_info:
            trace = self.formatException(record.exc_info)[-_TRACEBACK_CHARS_MAX:].split("\n")
            lines += [f"  | {''.join(c if ' ' <= c <= '~' else ascii(c)[1:-1] for c in line)}" for line in trace]
        return "\n".join(lines)


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `event`, the event's fields, and `traceback` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        when, level, event, fields = record_parts(record)
        body: dict[str, Any] = {"time": when, "level": level, "event": event, **fields}
        if record.exc_info:
            body["traceback"] = self.formatException(record.exc_info)[-_TRACEBACK_CHARS_MAX:]
        return json.dumps(body)


def set_up_log(level: str, form: str) -> None:
    """Send everything that this process logs to stderr.

    Args:
        level: the least severe of the broker's own events; libraries are heard from `warning` on.
        form: "text" or "json".
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    handler.addFilter(is_admitted)
    # Where a record cannot be written, a full disk for instance, a complaint about it would be no record either.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_log_level(level)
    warnings.showwarning = _on_warning
    sys.excepthook = _on_crash
    threading.excepthook = _on_thread_error
    sys.unraisablehook = _on_unraisable


def set_log_level(level: str) -> None:
    """Change the least severe of the broker's own events that is logged."""
    logging.getLogger("broker").setLevel(level.upper())


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Log what reaches the loop's exception handler as `loop_error`."""
    loop.set_exception_handler(_on_loop_error)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    emit("loop_error", message=context.get("message"), failure=context.get("exception"))


def _on_crash(kind: type[BaseException], failure: BaseException, trace: TracebackType | None, /) -> None:
    emit("crashed", failure=failure)


def _on_thread_error(caught: threading.ExceptHookArgs, /) -> None:
    emit("thread_error", thread=caught.thread and caught.thread.name, failure=caught.exc_value)


def _on_unraisable(caught: sys.UnraisableHookArgs, /) -> None:
    emit("unraisable_error", message=caught.err_msg or "exception ignored", failure=caught.exc_value)


def _on_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    emit("warning", message=f"{filename}:{lineno}: {category.__name__}: {message}")
