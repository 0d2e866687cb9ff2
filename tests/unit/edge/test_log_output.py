"""The server's log: one record a line in two forms, whoever speaks, and nothing that a peer sent can forge one."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from broker import events
from broker.edge.log_output import JsonLines, TextLines, is_admitted, watch_loop
from broker.events import EVENTS_PER_S_MAX, Limiter, emit
from broker.model.events import EVENT_BY_NAME, FieldKind

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
TYPES: dict[FieldKind, tuple[type, ...]] = {
    FieldKind.TEXT: (str,),
    FieldKind.INTEGER: (int,),
    FieldKind.NUMBER: (int, float),
    FieldKind.BOOLEAN: (bool,),
}


@pytest.fixture
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The output of a handler with the formatter that the test names."""
    monkeypatch.setattr(events, "_limiter", Limiter())
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(request.param())
    handler.addFilter(is_admitted)
    root, package = logging.getLogger(), logging.getLogger("broker")
    root.addHandler(handler)
    package.setLevel(logging.DEBUG)
    yield out
    package.setLevel(logging.NOTSET)
    root.removeHandler(handler)


as_json = pytest.mark.parametrize("written", [JsonLines], indirect=True)
as_text = pytest.mark.parametrize("written", [TextLines], indirect=True)


def records(text: str) -> list[dict[str, Any]]:
    """Return the records of a JSON log, each of which is as the registry says."""
    found = [json.loads(line) for line in text.splitlines()]
    for record in found:
        event = EVENT_BY_NAME[record["event"]]
        assert re.fullmatch(TIME, record["time"])
        assert list(record)[:3] == ["time", "level", "event"]
        if event.name != "library_log":
            assert record["level"] == event.severity
        assert set(record) - {"traceback", "suppressed"} == {"time", "level", "event"} | {f.name for f in event.fields}
        for field in event.fields:
            assert record[field.name] is None or isinstance(record[field.name], TYPES[field.kind])
    return found


@as_text
def test_text(written: io.StringIO) -> None:
    emit("reconnecting", after_s=0.25, code="CONNECTION_LOST", detail="connection: closed by the server")
    line = 'INFO reconnecting after_s=0.25 code=CONNECTION_LOST detail="connection: closed by the server"\n'
    assert re.fullmatch(f"{TIME} {re.escape(line)}", written.getvalue())


@as_json
def test_json(written: io.StringIO) -> None:
    emit("commit_failed", code="STORAGE_FULL", detail="disk: got 1 byte", handed_over=False)
    (record,) = records(written.getvalue())
    assert record["handed_over"] is False
    assert record["detail"] == "disk: got 1 byte"


FORGED = "x\n2026-01-01T00:00:00.000Z INFO ready pid=1\r\x1b[2J\u2028\x85"


@pytest.mark.parametrize("written", [JsonLines, TextLines], indirect=True)
def test_a_peers_text_cannot_forge_a_record(written: io.StringIO) -> None:
    emit("reconnecting", after_s=1, code=FORGED, detail=FORGED)
    logging.getLogger("some.library").error("said %s", FORGED)
    text = written.getvalue()
    assert len(text.splitlines()) == 2
    assert re.fullmatch(r"[ -~\n]*", text)


@as_text
def test_an_exceptions_text_cannot_forge_a_record(written: io.StringIO) -> None:
    emit("client_failed", failure=ValueError(FORGED))
    first, *rest = written.getvalue().splitlines()
    assert re.match(f"{TIME} ERROR client_failed error=", first)
    assert rest
    assert all(line.startswith("  | ") for line in rest)
    assert re.fullmatch(r"[ -~\n]*", written.getvalue())


@as_json
def test_a_traceback_is_a_field(written: io.StringIO) -> None:
    try:
        raise KeyError("lost")
    except KeyError as failure:
        emit("sealer_stopped", failure=failure)
    (record,) = records(written.getvalue())
    assert record["error"] == "KeyError: 'lost'"
    assert record["traceback"].startswith("Traceback (most recent call last)")


@as_json
def test_libraries_speak_in_the_same_form(written: io.StringIO) -> None:
    logging.getLogger("asyncio").warning("poll %d ms", 7)
    (record,) = records(written.getvalue())
    assert (record["event"], record["level"]) == ("library_log", "warning")
    assert (record["logger"], record["message"]) == ("asyncio", "poll 7 ms")


def test_a_librarys_mistake_in_logging_is_logged_all_the_same() -> None:
    record = logging.LogRecord("some", logging.ERROR, "f.py", 1, "%d and %d", (7,), None)
    assert "%d and %d" in json.loads(JsonLines().format(record))["message"]


@as_json
def test_libraries_are_bounded(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(events, "_limiter", Limiter(now_s=lambda: now_s))
    for _ in range(10 * EVENTS_PER_S_MAX):
        logging.getLogger("asyncio").error("socket.accept() out of system resource")
    now_s = 2.0
    logging.getLogger("asyncio").error("again")
    found = records(written.getvalue())
    assert len(found) == EVENTS_PER_S_MAX + 1
    assert found[-1]["suppressed"] == 9 * EVENTS_PER_S_MAX


@as_json
async def test_what_the_loop_catches_is_an_event(
    written: io.StringIO, loop_kind: str, loop_exceptions: list[dict[str, Any]]
) -> None:
    loop = asyncio.get_running_loop()
    watch_loop(loop)
    loop.call_soon(lambda: [][0])

    async def fail() -> None:
        raise ValueError("nobody takes it")

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    gc.collect()
    await asyncio.sleep(0)
    one, two = records(written.getvalue())
    assert [one["event"], two["event"]] == ["loop_error"] * 2
    assert {one["error"], two["error"]} == {"IndexError: list index out of range", "ValueError: nobody takes it"}
    assert "never retrieved" in one["message"] + two["message"]
    assert loop_exceptions == []


CHILD = """
import logging, sys, threading, warnings
from broker.edge.log_output import set_up_log, set_log_level
from broker.events import emit
from broker.model.events import EVENT_BY_NAME

set_up_log(*sys.argv[1:])
warnings.warn("old\\nnews")

def fail():
    raise ValueError("in a thread")

thread = threading.Thread(target=fail, name="worker")
thread.start()
thread.join()

class Bad:
    def __del__(self):
        raise ValueError("in a finalizer")

Bad()
logging.getLogger("some.library").info("chatter")
logging.getLogger("some.library").warning("heard")
emit("storage_recovered", group=1)
set_log_level("info")
emit("storage_recovered", group=2)
"""


def test_a_process_of_our_own_speaks_in_events_only() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, "error", "json"],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'ext'}"}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = records(ran.stderr)
    assert [record["event"] for record in found] == [
        "thread_error", "unraisable_error", "library_log", "storage_recovered",
    ], "the level of the broker's own events is error at first"  # fmt: skip
    thread, finalizer, library, recovered = found
    assert (thread["thread"], thread["error"]) == ("worker", "ValueError: in a thread")
    assert "ValueError: in a thread" in thread["traceback"]
    assert finalizer["error"] == "ValueError: in a finalizer"
    assert library["message"] == "heard"
    assert recovered["group"] == 2


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()])
def test_a_traceback_is_bounded(formatter: logging.Formatter) -> None:
    failure = ValueError("x" * 1_000_000)
    record = logging.LogRecord("some", logging.ERROR, "f.py", 1, "m", (), (ValueError, failure, None))
    assert len(formatter.format(record)) < 20_000


def test_a_crash_is_an_event() -> None:
    code = "from broker.edge.log_output import set_up_log; set_up_log('info', 'json'); [][0]"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'ext'}"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 1
    (record,) = records(ran.stderr)
    assert (record["event"], record["error"]) == ("crashed", "IndexError: list index out of range")
    assert "Traceback" in record["traceback"]


def test_a_warning_is_an_event() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, "warning", "text"],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'ext'}"}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    first = ran.stderr.splitlines()[0]
    assert re.fullmatch(f'{TIME} WARNING warning message="<string>:\\d+: UserWarning: old\\\\nnews"', first), first
