"""Where people sign in, figures are for who may manage everything; health is for everybody, who learns no more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from broker.access.static import hash_of
from tests.contract.homes import CONFIG, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPERATOR, READER = "scraper.a-secret-of-theirs", "reader.another-secret"


def access(token: str, user: str) -> str:
    identifier, _, secret = token.partition(".")
    return f'[tokens.{identifier}]\nuser = "{user}"\nroles = ["{user}"]\nhash = "{hash_of(secret)}"\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path: Path = tmp_path_factory.mktemp("access") / "access.toml"
    roles = '[roles.operator]\nmanage = [">"]\n[roles.reader]\nsubscribe = [">"]\nmanage = ["s.>"]\n'
    path.write_text(roles + access(OPERATOR, "operator") + access(READER, "reader"))
    path.chmod(0o600)
    server = Server(config=f'{CONFIG}[server]\nweb = "127.0.0.1:0"\n[access]\nfile = "{path}"\n').start()
    yield server
    server.stop()


def status_of(server: Server, path: str, token: str | None) -> tuple[int, str]:
    address = json.loads((server.folder / "ready").read_text())["web"]
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urlopen(Request(f"http://{address}{path}", headers=headers), timeout=10) as response:
            return response.status, response.read().decode()
    except HTTPError as refusal:
        return refusal.code, refusal.read().decode()


@pytest.mark.parametrize("path", ["/metrics", "/v1/stats"])
def test_figures_are_for_operators(server: Server, path: str) -> None:
    assert status_of(server, path, OPERATOR)[0] == 200
    for token, status in ((None, 401), ("scraper.wrong", 401), (READER, 403)):
        got, body = status_of(server, path, token)
        assert got == status
        assert "broker_" not in body
        assert "connections" not in body


@pytest.mark.parametrize(("path", "body"), [("/healthz", "ok\n"), ("/readyz", "ready\n")])
def test_health_is_for_everybody(server: Server, path: str, body: str) -> None:
    assert status_of(server, path, None) == (200, body)


@pytest.mark.parametrize("path", ["/metrics", "/v1/stats?seconds=300"])
def test_no_secret_is_told(server: Server, path: str) -> None:
    _, body = status_of(server, path, OPERATOR)
    assert "a-secret-of-theirs" not in body
    assert "argon2" not in body
