"""Who may do what over HTTP: tokens in the header alone, every path through the gate, and streams that end in time."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import joserfc.jwk
import joserfc.jwt
import pytest

from tests.contract.homes import CONFIG, Server
from tests.http_api.client import Events, Http
from tests.http_api.conftest import web_address

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = {"kty": "oct", "kid": "k1", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}
ACCESS = """\
[jwt]
algorithms = ["HS256"]
issuer = "test"
audience = "broker"
leeway_s = 0
keys = "keys.json"

[roles.ann]
publish = ["s.ann.>"]
subscribe = ["s.ann.>", "s.live"]
history = ["s.ann.>"]
manage = ["s.ann.>"]

[roles.bob]
publish = ["s.bob.>"]
"""


def token(user: str, seconds: float = 3600.0) -> str:
    """Return a signed token of a user."""
    claims: dict[str, Any] = {
        "iss": "test",
        "aud": "broker",
        "sub": user,
        "roles": [user],
        "exp": time.time() + seconds,
    }
    return joserfc.jwt.encode({"alg": "HS256", "kid": "k1"}, claims, joserfc.jwk.import_key(KEY))  # type: ignore[arg-type]


def bearer(user: str, seconds: float = 3600.0) -> dict[str, str]:
    """Return the header that says who asks."""
    return {"authorization": f"Bearer {token(user, seconds)}"}


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    running = Server()
    access = running.folder / "access.toml"
    access.write_text(ACCESS)
    access.chmod(0o600)
    keys = running.folder / "keys.json"
    keys.write_text(json.dumps({"keys": [KEY]}))
    keys.chmod(0o600)
    more = f'[server]\nweb = "127.0.0.1:0"\n[access]\nfile = "{access}"\n'
    (running.folder / "broker.toml").write_text(CONFIG + more)
    try:
        yield running.start()
    finally:
        running.stop()


REQUESTS = [
    ("POST", "/v1/publish?channel=s.ann.x"),
    ("GET", "/v1/history?channel=s.ann.x"),
    ("GET", "/v1/history?channel=s.ann.%3E"),
    ("GET", "/v1/subscribe?channel=s.ann.x&wait=0"),
    ("GET", "/v1/subscribe?channel=s.ann.x&wait=0&from=start"),
    ("GET", "/v1/channels/s.ann.x"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS, ids=lambda each: str(each).partition("?")[0])
def test_who_is_granted_is_let_in_and_nobody_else(http: Http, method: str, path: str) -> None:
    body = b"x" if method == "POST" else None
    assert http.ask(method, path, body, bearer("ann")).status == 200
    denied = http.ask(method, path, body, bearer("bob"))
    assert (denied.status, denied.body["name"]) == (403, "DENIED")
    for headers in (
        {},
        {"authorization": "Bearer nonsense"},
        {"authorization": "Basic YTpi"},
        {"authorization": "Bearer " + "x" * 9_000},
        {"authorization": f"Bearer {token('ann')[:-4]}AAAA"},
        {"cookie": f"token={token('ann')}"},
    ):
        refused = http.ask(method, path, body, headers)
        assert (refused.status, refused.body["name"]) in ((401, "UNAUTHENTICATED"), (429, "RATE_LIMITED"))
        if refused.status == 401:
            assert refused.headers["www-authenticate"] == "Bearer"
        time.sleep(0.11)  # failed sign-ins of an address are paced


def test_token_in_a_url_is_no_token(http: Http) -> None:
    answer = http.get("/v1/history", channel="s.ann.x", token=token("ann"))
    assert answer.status == 400
    assert token("ann").rpartition(".")[2] not in str(answer.body)


def test_token_that_has_expired_is_refused(http: Http) -> None:
    answer = http.ask("GET", "/v1/history?channel=s.ann.x", headers=bearer("ann", -1))
    assert (answer.status, answer.body["name"]) == (401, "TOKEN_EXPIRED")


def test_listing_shows_what_is_granted(http: Http) -> None:
    http.ask("POST", "/v1/publish?channel=s.ann.listed", b"x", bearer("ann"))
    http.ask("POST", "/v1/publish?channel=s.bob.listed", b"x", bearer("bob"))
    found = http.ask("GET", "/v1/channels?limit=1000", headers=bearer("ann")).body["channels"]
    assert {row["name"].split(".")[1] for row in found} == {"ann"}


def test_what_was_is_not_granted_with_what_comes(http: Http) -> None:
    live = http.ask("GET", "/v1/subscribe?channel=s.live&wait=0", headers=bearer("ann"))
    assert live.status == 200
    for query in ("from=start", "after=0:0", "last=1", "since=0"):
        answer = http.ask("GET", f"/v1/subscribe?channel=s.live&wait=0&{query}", headers=bearer("ann"))
        assert (answer.status, answer.body["name"]) == (403, "DENIED"), query


def test_stream_ends_with_its_token(http: Http) -> None:
    short = token("ann", 1.5)
    with Events(http.address, token=short, channel="s.ann.short") as events:
        assert next(events).name == "subscribed"
        begun = time.monotonic()
        text = events.rest().decode()
    assert time.monotonic() - begun < 5
    assert "event: problem" in text
    assert '"name":"TOKEN_EXPIRED"' in text


def test_bus_of_a_token_that_has_expired_is_not_used_again(http: Http) -> None:
    headers = bearer("ann", 1.0)
    assert http.ask("GET", "/v1/channels/s.ann.x", headers=headers).status == 200
    time.sleep(1.2)
    assert http.ask("GET", "/v1/channels/s.ann.x", headers=headers).status == 401
    assert http.ask("GET", "/v1/channels/s.ann.x", headers=bearer("ann")).status == 200


def test_secrets_are_in_no_log(served: Server, http: Http) -> None:
    secret = "canary-7d0f3a"
    http.ask("GET", "/v1/history?channel=s.x", headers={"authorization": f"Bearer {secret}"})
    assert secret not in (served.folder / "log").read_text()
    assert web_address(served) == http.address
