"""Errors as HTTP answers: `application/problem+json` (RFC 9457) with the registry's code, name, detail and hint.

The status says to programs that know HTTP alone what the code's thousand says to ours: 4xx is the client's to mend, 429
and 503 are to be tried again, when `Retry-After` says so, 5xx is the server's. Nothing of the request but what the
detail quotes gets into an answer.
"""

from __future__ import annotations

import json
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from broker.model.errors import BrokerError, Conflict, Remedy

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONTENT_TYPE", "Refused", "problem", "status_of"]

CONTENT_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1
"""When to come back if the error does not say."""

_STATUS: Final[Mapping[str, int]] = {
    "LIMIT": 429,
    "RATE_LIMITED": 429,
    "TIMEOUT": 504,
    "STORAGE_FULL": 507,
    "COMMIT_UNKNOWN": 500,
    "FRAME_TOO_LARGE": 413,
    "NO_PROFILE": 404,
    "DENIED": 403,
    "PAYLOAD_TOO_LARGE": 413,
    "HEADERS_TOO_LARGE": 413,
    "UNKNOWN_OPERATION": 404,
    "TOO_MANY_CHANNELS": 429,
    "TOO_MANY_SUBSCRIPTIONS": 429,
    "CONFLICT": 409,
    "NOT_STORED": 409,
    "UNKNOWN_CONSUMER": 404,
    "CONSUMER_EXISTS": 409,
    "UNKNOWN_MESSAGE": 404,
    "UNAUTHENTICATED": 401,
    "TOKEN_EXPIRED": 401,
}
_BY_REMEDY: Final[Mapping[Remedy, int]] = {
    Remedy.RETRY: 503,
    Remedy.RESUME: 503,
    Remedy.STOP: 400,
    Remedy.STORAGE: 500,
}


class Refused(Exception):
    """A request is refused with a status of its own, since HTTP has a word for what is wrong with it.

    Args:
        failure: What is wrong.
        status: How HTTP calls it.
        headers: What else the answer says, `Allow` for instance.
    """

    def __init__(self, failure: BrokerError, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(failure, status)
        self.failure = failure
        self.status = status
        self.headers = dict(headers or {})


def status_of(failure: BrokerError) -> int:
    """Return the status of an error: by its name, else by what its code asks of a client."""
    return _STATUS.get(failure.name, _BY_REMEDY[failure.remedy])


def problem(failure: BrokerError, status: int | None = None) -> tuple[int, dict[str, str], bytes]:
    """Return an error as an answer.

    Args:
        failure: What is wrong.
        status: How HTTP calls it, if that is not what follows from the error.

    Returns:
        The status, the headers and the body.
    """
    status = status_of(failure) if status is None else status
    fields: dict[str, Any] = {
        "title": failure.name,
        "status": status,
        "detail": failure.detail,
        "code": failure.code,
        "name": failure.name,
        "hint": failure.hint,
    }
    headers = {"content-type": CONTENT_TYPE, "cache-control": "no-store"}
    if failure.retry_after_ms is not None:
        fields["retry_after_ms"] = failure.retry_after_ms
    if isinstance(failure, Conflict):
        fields["index"] = failure.index
        if failure.head is not None:
            fields["head"] = str(failure.head)
    if status in (429, 503, 504, 507):
        after_ms = failure.retry_after_ms
        headers["retry-after"] = str(RETRY_AFTER_S if after_ms is None else max(1, ceil(after_ms / 1000)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return status, headers, json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
