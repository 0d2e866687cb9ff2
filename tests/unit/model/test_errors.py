"""The registry of errors: codes are stable and unique, their range decides, and the wire keeps them."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.model import errors
from broker.model.errors import BY_CODE, BY_NAME, ERROR_CODES, BrokerError, Remedy, error, from_wire, to_wire

# Written out here a second time on purpose: a code is a promise, and an edit of the registry that moves one must fail.
PROMISED = {
    1001: "BUSY",
    1002: "STORAGE_FULL",
    1003: "NUMBER_GAP",
    1004: "COMMIT_REFUSED",
    1005: "TOO_MANY_CONNECTIONS",
    1006: "LIMIT",
    1007: "TIMEOUT",
    1008: "UNAVAILABLE",
    1009: "NO_RESPONDERS",
    1010: "RATE_LIMITED",
    2001: "GOING_AWAY",
    2002: "SLOW_CONSUMER",
    2003: "CONNECTION_LOST",
    2004: "PRODUCER_TAKEN",
    2005: "PING_TIMEOUT",
    2006: "CONSUMER_TAKEN",
    2007: "TLS_FAILED",
    3001: "MALFORMED_FRAME",
    3002: "FRAME_TOO_LARGE",
    3003: "VERSION",
    3004: "BAD_STATE",
    3005: "INVALID_CHANNEL",
    3006: "INVALID_PATTERN",
    3007: "NO_PROFILE",
    3008: "DENIED",
    3009: "PAYLOAD_TOO_LARGE",
    3010: "HEADERS_TOO_LARGE",
    3011: "INVALID_RECORD",
    3012: "UNKNOWN_SUBSCRIPTION",
    3013: "SUBSCRIPTION_IN_USE",
    3014: "INVALID_POSITION",
    3015: "TOO_MANY_CHANNELS",
    3016: "TOO_MANY_SUBSCRIPTIONS",
    3017: "UNKNOWN_OPERATION",
    3018: "INVALID_CONFIG",
    3019: "NUMBER_OVERLAP",
    3020: "CLOSED",
    3021: "FORKED",
    3022: "ADDRESS",
    3023: "CROSS_SHARD",
    3024: "CONFLICT",
    3025: "NOT_STORED",
    3026: "UNKNOWN_CONSUMER",
    3027: "INVALID_CONSUMER",
    3028: "CONSUMER_EXISTS",
    3029: "LEASE_UNKNOWN",
    3030: "LEASE_EXPIRED",
    3031: "INVALID_TIME",
    3032: "UNKNOWN_MESSAGE",
    3033: "TRANSACTION_TOO_LARGE",
    3034: "INVALID_ID",
    3035: "UNAUTHENTICATED",
    3036: "TOKEN_EXPIRED",
    4001: "COMMIT_UNKNOWN",
    4002: "STORAGE_CORRUPT",
    4003: "STORAGE_FORMAT",
    4004: "STORAGE_IN_USE",
    4005: "STORAGE_FAILED",
    4006: "SERVER_FAILED",
}


def test_registry_is_what_was_promised() -> None:
    assert {row.code: row.name for row in ERROR_CODES} == PROMISED
    assert len(ERROR_CODES) == len(BY_CODE) == len(BY_NAME) == len(PROMISED)


@pytest.mark.parametrize("row", ERROR_CODES, ids=lambda row: row.name)
def test_row_is_complete(row: errors.ErrorCode) -> None:
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", row.name)
    assert row.summary
    assert not row.summary.endswith(".")
    assert row.advice.endswith(".")
    assert "\n" not in row.summary + row.advice
    assert issubclass(row.kind, BrokerError)
    assert error(row.code, "what").hint == error(row.code, "what", "").hint == row.advice, "each has a next step"
    # What a handle of this process refuses cannot concern a connection, and what closes one is no request's.
    if row.scope is errors.Scope.LOCAL:
        assert row.remedy in (Remedy.STOP, Remedy.STORAGE)
    if row.remedy is Remedy.RESUME or issubclass(row.kind, errors.ProtocolError):
        if row.name == "CONSUMER_TAKEN":  # which ends a subscription alone: that is what is begun anew
            assert row.scope is errors.Scope.REQUEST
            return
        assert row.scope is errors.Scope.CONNECTION


def test_registry_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ERROR_CODES[0].code = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        BY_CODE[1] = ERROR_CODES[0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (-1, Remedy.STOP),
        (0, Remedy.STOP),
        (999, Remedy.STOP),
        (1000, Remedy.RETRY),
        (1999, Remedy.RETRY),
        (2000, Remedy.RESUME),
        (2999, Remedy.RESUME),
        (3000, Remedy.STOP),
        (3999, Remedy.STOP),
        (4000, Remedy.STORAGE),
        (4999, Remedy.STORAGE),
        (5000, Remedy.STOP),
        (65_535, Remedy.STOP),
    ],
)
def test_range_decides_the_remedy(code: int, remedy: Remedy) -> None:
    assert errors.remedy_of(code) is remedy


@pytest.mark.parametrize("row", ERROR_CODES, ids=lambda row: row.name)
def test_error_is_of_its_class_by_code_and_by_name(row: errors.ErrorCode) -> None:
    for failure in (error(row.code, "what: got 2, limit 1"), error(row.name, "what: got 2, limit 1")):
        assert type(failure) is row.kind
        assert (failure.code, failure.name) == (row.code, row.name)
        assert failure.temporary is (1000 <= row.code < 2000)
        assert str(failure) == f"{row.name} ({row.code}): what: got 2, limit 1"


def test_families_that_a_program_catches() -> None:
    assert isinstance(error("INVALID_CONFIG", ""), ValueError)
    assert isinstance(error("FRAME_TOO_LARGE", ""), errors.ProtocolError)
    assert isinstance(error("INVALID_CHANNEL", ""), errors.RequestError)
    assert isinstance(error("STORAGE_FULL", ""), errors.StorageError)
    assert isinstance(error("COMMIT_UNKNOWN", ""), errors.CommitUnknown)
    assert isinstance(error("LIMIT", ""), errors.Unavailable)
    for row in ERROR_CODES:
        if row.remedy is Remedy.STORAGE:
            assert issubclass(row.kind, errors.StorageError)
        if row.remedy is Remedy.RESUME:
            assert issubclass(row.kind, errors.Unavailable)


@pytest.mark.parametrize("unknown", [0, 999, 4007, "NOPE", "busy"])
def test_error_of_no_row_is_a_mistake_of_the_caller(unknown: int | str) -> None:
    with pytest.raises(KeyError):
        error(unknown, "")


@pytest.mark.parametrize("hint", ["do this", BY_NAME["STORAGE_FULL"].advice])
def test_copies_are_the_same_error(hint: str | None) -> None:
    failure = error("STORAGE_FULL", "disk: got 1 byte, limit 0 bytes", hint)
    for twin in (copy.copy(failure), pickle.loads(pickle.dumps(failure))):
        assert type(twin) is errors.StorageFull
        assert (twin.code, twin.name, twin.detail, twin.hint) == (1002, "STORAGE_FULL", failure.detail, hint)


@given(st.sampled_from(ERROR_CODES), st.text(), st.none() | st.text())
def test_wire_round_trip(row: errors.ErrorCode, detail: str, hint: str | None) -> None:
    failure = error(row.code, detail, hint)
    body = to_wire(failure)
    assert set(body) == {"code", "name", "detail"} | ({"hint"} if hint and hint != row.advice else set())
    twin = from_wire(body | {"request": 7})
    assert type(twin) is type(failure)
    assert to_wire(twin) == body


@pytest.mark.parametrize("after_ms", [0, 1, 2**32 - 1])
def test_when_to_try_again_is_kept(after_ms: int) -> None:
    failure = error("BUSY", "too much", retry_after_ms=after_ms)
    for twin in (copy.copy(failure), pickle.loads(pickle.dumps(failure)), from_wire(to_wire(failure))):
        assert twin.retry_after_ms == after_ms
    assert error("BUSY", "too much").retry_after_ms is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0, errors.RequestError),
        (1999, errors.Unavailable),
        (2999, errors.Unavailable),
        (3999, errors.RequestError),
        (4999, errors.StorageError),
        (65_535, errors.RequestError),
    ],
)
def test_code_of_a_newer_peer_keeps_its_name_and_remedy(code: int, kind: type[BrokerError]) -> None:
    failure = from_wire({"code": code, "name": "NEWER", "detail": "something"})
    assert type(failure) is kind
    assert str(failure) == f"NEWER ({code}): something"
    assert failure.hint == errors.REMEDY_MEANINGS[failure.remedy]
    assert "hint" not in to_wire(failure)
    assert copy.copy(failure).name == "NEWER"


def test_known_code_keeps_the_registry_name_whatever_the_peer_says() -> None:
    assert from_wire({"code": 1001, "name": "LIES", "detail": ""}).name == "BUSY"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": 1001},
        {"code": 1001, "name": "BUSY"},
        {"code": "1001", "name": "BUSY", "detail": ""},
        {"code": True, "name": "BUSY", "detail": ""},
        {"code": -1, "name": "BUSY", "detail": ""},
        {"code": 65_536, "name": "BUSY", "detail": ""},
        {"code": 1001, "name": b"BUSY", "detail": ""},
        {"code": 1001, "name": "BUSY", "detail": None},
        {"code": 1001, "name": "BUSY", "detail": "", "hint": 1},
        {"code": 1001, "name": "BUSY", "detail": "", "retry_after_ms": -1},
        {"code": 1001, "name": "BUSY", "detail": "", "retry_after_ms": 2**32},
        {"code": 1001, "name": "BUSY", "detail": "", "retry_after_ms": "soon"},
        {"code": 1001, "name": "BUSY", "detail": "", "retry_after_ms": True},
    ],
)
def test_malformed_error_of_a_peer_is_a_malformed_frame(body: dict[str, object]) -> None:
    with pytest.raises(errors.MalformedFrame):
        from_wire(body)
