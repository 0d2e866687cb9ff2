"""The log: every call is of the registry, a line cannot be forged, and no flood of events fills a disk."""

from __future__ import annotations

import ast
import json
import logging
import re
import textwrap
from pathlib import Path

import pytest

import broker
from broker import events
from broker.events import EVENTS_PER_S_MAX, TEXT_CHARS_MAX, Limiter, Refusals, Said, emit, flush, tally, text_value
from broker.model.events import EVENT_BY_NAME, EVENTS, RESERVED_FIELDS, Event, FieldKind

PACKAGE = Path(broker.__file__).parent
OWN = {PACKAGE / "events.py", PACKAGE / "edge" / "log_output.py"}
"""The only modules that know `logging`."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count from zero, whatever other tests have logged in this second."""
    monkeypatch.setattr(events, "_limiter", Limiter())
    monkeypatch.setattr(events, "_refusals", Refusals())


# -- the registry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_event_is_complete(event: Event) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", event.name)
    assert event.meaning
    assert not event.meaning.endswith(".")
    assert event.advice.endswith(".")
    names = [field.name for field in event.fields]
    assert len(set(names)) == len(names)
    for field in event.fields:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", field.name)
        assert field.meaning
        assert field.name not in RESERVED_FIELDS
        assert (field.kind is FieldKind.NUMBER) == field.name.endswith("_s") or field.kind is FieldKind.INTEGER


def test_names_are_unique() -> None:
    assert len(EVENT_BY_NAME) == len(EVENTS)


# -- the calls ---------------------------------------------------------------------------------------------------------


def complaints(source: str, *, own: bool = False) -> list[str]:
    """Return what is wrong with a module's logging: other ways than `emit`, unknown events, fields that do not fit."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) and not own:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            found += [f"{node.lineno}: imports {name}" for name in modules if name in ("logging", "warnings", "syslog")]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name == "emit":
                found += [f"{node.lineno}: {complaint}" for complaint in complaints_of_call(node)]
    return found


def complaints_of_call(call: ast.Call) -> list[str]:
    """Return what is wrong with one call of `emit`."""
    if len(call.args) != 1 or not isinstance(call.args[0], ast.Constant):
        return ["the event's name is not written out"]
    event = EVENT_BY_NAME.get(str(call.args[0].value))
    if event is None:
        return [f"no event is called {call.args[0].value!r}"]
    given = {"error" if keyword.arg == "failure" else keyword.arg for keyword in call.keywords}
    if None in given:
        return ["the fields are not written out"]
    wanted = {field.name for field in event.fields}
    return [f"{event.name}: {name} is missing or unknown" for name in sorted(given ^ wanted, key=str)]


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_call_is_of_the_registry() -> None:
    assert len(MODULES) > 50
    assert set(MODULES) > OWN
    found = [
        f"{path.relative_to(PACKAGE)}:{complaint}"
        for path in MODULES
        for complaint in complaints(path.read_text(encoding="utf-8"), own=path in OWN)
    ]
    assert found == []


def test_every_event_is_said_somewhere() -> None:
    said = {
        node.args[0].value
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "emit"
        if isinstance(node.args[0], ast.Constant)
    }
    assert said | {"library_log"} == set(EVENT_BY_NAME)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("import logging", "imports logging"),
        ("def f():\n    from logging import getLogger", "imports logging"),
        ("import warnings", "imports warnings"),
        ("emit('nope')", "no event is called 'nope'"),
        ("emit(name)", "not written out"),
        ("emit('stopped', run=1, **more)", "not written out"),
        ("emit('stopped')", "run is missing"),
        ("emit('stopped', run=1, payload=b'')", "payload is missing or unknown"),
        ("events.emit('stopped', run=1, failure=failure)", "error is missing or unknown"),
    ],
)
def test_a_wrong_call_is_caught(source: str, part: str) -> None:
    (found,) = complaints(source)
    assert part in found


# -- the record --------------------------------------------------------------------------------------------------------


def said_by(caplog: pytest.LogCaptureFixture) -> list[Said]:
    return [record.msg for record in caplog.records if isinstance(record.msg, Said)]


def test_a_record_has_the_level_and_the_logger_of_the_registry(caplog: pytest.LogCaptureFixture) -> None:
    emit("segment_seal_delayed", segment=Path("/d/s"), retry_s=1, error=OSError(28, "No space left"))
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("broker.log", "WARNING")
    (said,) = said_by(caplog)
    assert said.fields == {"segment": "/d/s", "retry_s": 1.0, "error": "[Errno 28] No space left"}
    assert record.getMessage() == 'segment_seal_delayed segment=/d/s retry_s=1.0 error="[Errno 28] No space left"'


def test_a_failure_fills_the_error_and_brings_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError as failure:
        emit("catchup_failed", failure=failure)
    (said,) = said_by(caplog)
    assert said.fields == {"error": "ZeroDivisionError: oops"}
    assert caplog.records[0].exc_info is not None


def test_a_quiet_level_costs_nothing_and_counts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "broker"):
        for _ in range(2 * EVENTS_PER_S_MAX):
            emit("stopped", run=1)
    with caplog.at_level(logging.INFO, "broker"):
        emit("stopped", run=2)
        flush()
    assert [said.fields for said in said_by(caplog)] == [{"run": 2}]


def test_values_that_do_not_fit_come_as_text(caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd"

    emit("commit_failed", code=None, detail=Odd(), handed_over="yes")
    emit("clock_jump", behind_s=float("nan"), lasts_s=True)
    emit("reload_refused", code="X", detail="x" * 5_000, hint="")
    one, two, three = (said.fields for said in said_by(caplog))
    assert one == {"code": None, "detail": "odd", "handed_over": "yes"}
    assert two == {"behind_s": "nan", "lasts_s": 1}
    assert three["detail"] == "x" * TEXT_CHARS_MAX + "…"


def test_an_unknown_event_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        emit("nope")


HOSTILE = [
    "a\nb",
    "a\r\nready pid=1",
    "\x1b[2J",
    "a b=c",
    'x" y="',
    "\\",
    "\x00",
    "\x85",
    "\u2028",
    "\u202e",
    "",
    "null",
]


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800", "é", "true", "1e5"])
def test_text_cannot_forge_a_field_or_a_line(text: str) -> None:
    value = text_value(text)
    assert value.isascii()
    assert value.isprintable()
    if value.startswith('"'):
        assert json.loads(value) == text
    else:
        assert value == text
        assert " " not in value
    assert text_value(None) == "null", "which is no text"


@pytest.mark.parametrize("text", ["chat.acme.42", "/var/lib/x", "127.0.0.1:4770", "a,b", "+1.5", "50%", "a@b"])
def test_simple_words_are_bare(text: str) -> None:
    assert text_value(text) == text


# -- floods ------------------------------------------------------------------------------------------------------------


def test_limiter_lets_through_so_many_a_second_and_counts_the_rest() -> None:
    now_s = 100.0
    limiter = Limiter(3, lambda: now_s)
    assert [limiter.ask("a") for _ in range(5)] == [(True, 0)] * 3 + [(False, 0)] * 2
    assert limiter.ask("b") == (True, 0), "each event has a bound of its own"
    now_s += 0.999
    assert limiter.ask("a") == (False, 0)
    now_s += 0.002
    assert limiter.ask("a") == (True, 3)
    assert limiter.ask("a") == (True, 0)
    assert limiter.take() == {}


def test_what_was_left_out_and_never_came_again_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "broker"):
        for _ in range(EVENTS_PER_S_MAX + 7):
            emit("stopped", run=1)
        flush()
        flush()
    said = said_by(caplog)
    # The machine may take more than a second for this, and then fewer are left out.
    left_out = sum(int(one.fields.get("suppressed") or 0) for one in said)
    left_out += sum(int(one.fields["count"] or 0) for one in said if one.event.name == "events_suppressed")
    assert len([one for one in said if one.event.name == "stopped"]) + left_out == EVENTS_PER_S_MAX + 7


def test_refusals_are_counted_by_code(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "broker"):
        for _ in range(5_000):
            tally("MALFORMED_FRAME")
        tally("TIMEOUT")
        assert caplog.records == []
        flush()
        flush()
    said = said_by(caplog)
    assert [(one.event.name, one.fields["code"], one.fields["count"]) for one in said] == [
        ("connections_refused", "MALFORMED_FRAME", 5_000),
        ("connections_refused", "TIMEOUT", 1),
    ]


def test_codes_that_are_counted_apart_are_bounded() -> None:
    now_s = 5.0
    refusals = Refusals(lambda: now_s)
    for number in range(1_000):
        refusals.count(f"CODE_{number}")
    now_s += 2
    taken = refusals.take()
    assert len(taken) <= 65
    assert sum(count for count, _ in taken.values()) == 1_000
    assert {within_s for _, within_s in taken.values()} == {2.0}
    assert refusals.take() == {}


def test_the_judge_reads_whole_modules() -> None:
    """A call deep inside a class is seen as well."""
    source = textwrap.dedent("""
        class A:
            async def f(self):
                if 1:
                    emit("stopping")
    """)
    assert complaints(source) == ["5: stopping: drain_s is missing or unknown"]
