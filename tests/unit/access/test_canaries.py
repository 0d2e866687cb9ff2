"""Secrets are nowhere to be read: each one is a canary that is looked for in all that is written and shown."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from typing import TYPE_CHECKING

import pytest

from broker.access.authority import Authority
from broker.access.minting import read_signing_key
from broker.access.static import hash_of, make
from broker.cli.main import main
from broker.edge.log_output import JsonLines
from broker.model.errors import BrokerError
from tests.unit.access.people import JWT, ROLES, Folder, key_of, token, until

if TYPE_CHECKING:
    from pathlib import Path

    from broker.access.identity import Identity

STATIC = make("nightly")
HASH = hash_of(STATIC.partition(".")[2])
SIGNED = {algorithm: token(algorithm) for algorithm in ("EdDSA", "HS256")}
CANARIES = {
    "secret of a static token": STATIC.partition(".")[2],
    "hash": HASH,
    "hash alone": HASH.rpartition("$")[2],
    "shared secret": key_of("HS256")["k"],
    "private key": key_of("EdDSA")["d"],
    "a whole signed token": SIGNED["EdDSA"],
    "signature of EdDSA": SIGNED["EdDSA"].rpartition(".")[2],
    "signature of HS256": SIGNED["HS256"].rpartition(".")[2],
    "password typed for a token": "hunter2-of-somebody",
}
ALL = JWT + ROLES + f'[tokens.nightly]\nhash = "{HASH}"\nuser = "backup"\nroles = ["reader"]\n'


def found_in(text: str) -> list[str]:
    """Return which canaries sing in a text."""
    return [name for name, canary in CANARIES.items() if canary in text]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


async def test_signing_in_tells_no_secret(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """Good, bad and bent tokens: identities, errors with their tracebacks, reprs of what holds them, and the log."""
    shown: list[str] = []
    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.DEBUG):
        authority = Authority(folder.write(ALL), loop.call_soon_threadsafe, poll_s=0.01)
        try:
            bent = [text[:-5] + "AAAAA" for text in (*SIGNED.values(), STATIC)]
            doubled = [f"{STATIC}.{STATIC}", f"{STATIC} {STATIC}", CANARIES["password typed for a token"], f"x.{HASH}"]
            for text in (*SIGNED.values(), STATIC, *bent, *doubled):
                answer: asyncio.Future[Identity | BrokerError] = loop.create_future()
                authority.sign_in(text, "peer", answer.set_result)
                found = await asyncio.wait_for(answer, 20)
                shown.append(repr(found))
                if isinstance(found, BrokerError):
                    shown += [str(found), found.hint, *traceback.format_exception(found)]
                else:
                    shown += [repr(authority.standing(found)), repr(found.credential)]
            rules = authority.rules
            shown += [repr(authority), repr(rules), repr(rules.keys), repr(rules.vault), repr(rules.listed)]
            for wrong in (
                ALL.replace("hash =", "hush ="),
                ALL.replace(HASH, STATIC),
                ALL + STATIC,
                ALL.replace('"Ed', "Ed"),
            ):
                seen = len(caplog.records)
                folder.write(wrong)
                await until(lambda seen=seen: len(caplog.records) > seen)  # type: ignore[misc]
        finally:
            authority.close()
    formatter = JsonLines()
    shown += [formatter.format(record) for record in caplog.records] + [caplog.text]
    assert len(caplog.records) >= 4
    assert found_in("\n".join(shown)) == []


def test_the_command_line_tells_no_secret(folder: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    """What `check` and `explain` print of good and of bent tokens; and no option takes a token or a secret."""
    path = folder.write(ALL)
    for number, text in enumerate((*SIGNED.values(), STATIC, STATIC[:-5] + "AAAAA", SIGNED["HS256"][:-5] + "AAAAA")):
        file = folder.path / f"{number}.token"
        file.write_text(text + "\n")
        for verb in ("check", "explain"):
            for form in ((), ("--json",)):
                main(["token", verb, "--access", path, *form, str(file)])
    out, err = capfd.readouterr()
    assert "ada" in out
    assert "error UNAUTHENTICATED" in err
    assert found_in(out + err) == []


def test_a_key_file_tells_no_secret(folder: Folder) -> None:
    path = folder.path / "signing.json"
    for text in (
        json.dumps(key_of("EdDSA"))[:-1],
        json.dumps([key_of("EdDSA")]),
        json.dumps({"keys": [key_of("HS256")] * 2}),
    ):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(BrokerError) as caught:
            read_signing_key(str(path))
        assert found_in("".join(traceback.format_exception(caught.value, chain=True)) + str(caught.value)) == []
