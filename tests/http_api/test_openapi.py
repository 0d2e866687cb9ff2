"""The OpenAPI document is what the server does: requests are made from it, right and wrong, and answers compared."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from broker.edge.web.openapi import document

if TYPE_CHECKING:
    from tests.http_api.client import Http

EXAMPLES = int(os.environ.get("BROKER_HTTP_EXAMPLES", "5"))
"""Requests of each operation; a thousand take some minutes."""

UNSAID: dict[str, Any] = {path: [positive_data_acceptance] for path in ("/v1/history", "/v1/subscribe")}
"""That of two beginnings one alone may be given is what no parameters of OpenAPI can say."""

schema = schemathesis.openapi.from_dict(document())


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)
def test_answers_are_as_documented(case: schemathesis.Case[Any], http: Http) -> None:
    if case.path == "/v1/subscribe":
        # Without it the answer is a stream, which ends with its connection.
        case.query = {**(case.query or {}), "wait": 0}
    case.body = with_integers(case.body)
    case.call_and_validate(base_url=f"http://{http.address}", timeout=20, excluded_checks=UNSAID.get(case.path, []))


def with_integers(value: Any) -> Any:
    """Return a body with integers as integers: to JSON Schema 1.0 is one, and to the dialect it is none."""
    if isinstance(value, dict):
        return {name: with_integers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [with_integers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def test_document_is_served(http: Http) -> None:
    answer = http.get("/v1/openapi.json")
    assert (answer.status, answer.body) == (200, document())
