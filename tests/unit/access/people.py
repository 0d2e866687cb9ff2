"""Keys, tokens and access files for the tests of who signs in."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from broker.access.minting import Signer, make_key, public_half

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ISSUER, AUDIENCE = "https://login.example.com/", "broker"

JWT = f"""
[jwt]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
algorithms = ["EdDSA", "RS256", "HS256"]
keys = "keys.json"
leeway_s = 5
"""
ROLES = """
[roles.chat]
subscribe = ["user.{sub}.>", "news.>"]
publish = ["user.{sub}.*"]

[roles.reader]
subscribe = ["news.>"]
"""


def key_of(algorithm: str, key_id: str | None = None) -> dict[str, Any]:
    """Return a private key that is the same through a run: RSA keys take their time to be found."""
    return _key(algorithm, key_id or algorithm)


@cache
def _key(algorithm: str, key_id: str) -> dict[str, Any]:
    return make_key(key_id, algorithm)


def claims(**changes: object) -> dict[str, object]:
    """Return good claims; a change to None takes one out."""
    now_s = int(time.time())
    said: dict[str, object] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now_s + 60, "roles": ["chat"]}
    said |= changes
    return {name: value for name, value in said.items() if value is not None}


def token(algorithm: str = "EdDSA", key_id: str | None = None, **changes: object) -> str:
    """Return a signed token, good but for the changes to its claims."""
    return _signer(algorithm, key_id or algorithm).mint(claims(**changes))


@cache
def _signer(algorithm: str, key_id: str) -> Signer:
    return Signer(_key(algorithm, key_id))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds, while the loop turns."""
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to hold")


@dataclass
class Folder:
    """A folder with an access file and its key set."""

    path: Path
    keys: list[dict[str, Any]] = field(default_factory=lambda: [key_of("EdDSA"), key_of("HS256")])

    @property
    def file(self) -> str:
        return str(self.path / "access.toml")

    def write_keys(self) -> None:
        """Write the set, as a whole."""
        self._write("keys.json", json.dumps({"keys": [public_half(key) for key in self.keys]}))

    def write(self, text: str = JWT + ROLES) -> str:
        """Write the access file, and the keys if there are none; return its path."""
        if not (self.path / "keys.json").exists():
            self.write_keys()
        self._write("access.toml", text)
        return self.file

    def _write(self, name: str, text: str) -> None:
        fresh = self.path / f"{name}.fresh"
        fresh.write_text(text, encoding="utf-8")
        os.chmod(fresh, 0o600)
        os.replace(fresh, self.path / name)
