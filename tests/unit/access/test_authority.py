"""The authority: answers on the loop, static tokens beside it, and files that change under it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from broker.access import authority as module
from broker.access.authority import Authority
from broker.access.identity import Identity, Verb
from broker.access.static import make
from broker.model.errors import BrokerError, ConfigError
from tests.unit.access.people import JWT, ROLES, Folder, key_of, token, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POLL_S = 0.01
SECRETS = {"nightly": make("nightly"), "hourly": make("hourly")}


def cheap_hash(secret: str) -> str:
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(secret)


LISTED = "".join(
    f'[tokens.{name}]\nhash = "{cheap_hash(secret.partition(".")[2])}"\nuser = "{name}"\nroles = ["reader"]\n'
    for name, secret in SECRETS.items()
)
ALL = JWT + ROLES + LISTED


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@contextmanager
def opened(folder: Folder, text: str = ALL, **options: Any) -> Iterator[Authority]:
    """Open an authority on the running loop, and close it."""
    found = Authority(folder.write(text), asyncio.get_running_loop().call_soon_threadsafe, poll_s=POLL_S, **options)
    try:
        yield found
    finally:
        found.close()


async def signed_in(authority: Authority, text: str, peer: str = "") -> Identity | BrokerError:
    """Return what signing in comes to."""
    answer: asyncio.Future[Identity | BrokerError] = asyncio.get_running_loop().create_future()
    authority.sign_in(text, peer, answer.set_result)
    return await asyncio.wait_for(answer, 20)


def name_of(found: Identity | BrokerError | None) -> str:
    """Return a user, or the name of a refusal."""
    assert found is not None
    return found.user if isinstance(found, Identity) else found.name


async def changed(authority: Authority, change: Callable[[], object]) -> None:
    """Wait until a change of the files is in force."""
    event = asyncio.Event()
    authority.on_change.append(event.set)
    change()
    await asyncio.wait_for(event.wait(), 20)
    authority.on_change.remove(event.set)


async def test_a_signed_token_is_answered_at_once(folder: Folder) -> None:
    with opened(folder) as authority:
        found: list[Identity | BrokerError] = []
        for text in (token(), token(sub="eve"), token(exp=1), "a.b.c", "", "x" * 9000):
            authority.sign_in(text, "there", found.append)
        names = ["ada", "eve", "TOKEN_EXPIRED", "UNAUTHENTICATED", "UNAUTHENTICATED", "UNAUTHENTICATED"]
        assert [name_of(each) for each in found] == names
        assert isinstance(found[0], Identity)
        assert found[0].peer == "there"


async def test_a_static_token_is_answered_on_the_loop(folder: Folder) -> None:
    with opened(folder) as authority:
        answers: list[str] = []
        done = asyncio.Event()

        def answer(found: Identity | BrokerError) -> None:
            answers.append(name_of(found))
            assert threading.current_thread() is threading.main_thread()
            done.set()

        authority.sign_in(SECRETS["nightly"], "", answer)
        assert answers == []
        await asyncio.wait_for(done.wait(), 20)
        authority.sign_in(SECRETS["nightly"], "", answer)  # it is known by now
        assert answers == ["nightly", "nightly"]
        assert name_of(await signed_in(authority, SECRETS["nightly"] + "x")) == "UNAUTHENTICATED"
        assert name_of(await signed_in(authority, SECRETS["nightly"].replace("nightly", "weekly"))) == "UNAUTHENTICATED"


async def test_a_secret_is_not_that_of_another_id(folder: Folder) -> None:
    with opened(folder) as authority:
        for _ in range(2):  # the second time nightly's is known
            assert name_of(await signed_in(authority, SECRETS["nightly"])) == "nightly"
            swapped = "hourly." + SECRETS["nightly"].partition(".")[2]
            assert name_of(await signed_in(authority, swapped)) == "UNAUTHENTICATED"


async def test_no_more_wait_than_is_said(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKS_MAX", 3)
    with opened(folder) as authority:
        answers: list[str] = []
        refusals: list[BrokerError] = []

        def answer(found: Identity | BrokerError) -> None:
            answers.append(name_of(found))
            if isinstance(found, BrokerError):
                refusals.append(found)

        for number in range(6):
            authority.sign_in(f"nightly.{number}", "", answer)
        assert answers == ["BUSY"] * 3
        assert refusals[0].retry_after_ms == module.BUSY_RETRY_MS
        # Whoever comes with a token that is being compared waits for the same answer.
        authority.sign_in("nightly.0", "", answer)
        await until(lambda: len(answers) == 7)
        assert answers[3:] == ["UNAUTHENTICATED"] * 4


async def test_the_loop_goes_on_while_secrets_are_compared(folder: Folder) -> None:
    """Comparisons of full cost take the loop nothing: it turns all the while."""
    from broker.access.static import hash_of

    text = ROLES + f'[tokens.a]\nhash = "{hash_of("b")}"\nuser = "a"\nroles = ["reader"]\n'
    with opened(folder, text) as authority:
        answers: list[str] = []
        for number in range(10):
            authority.sign_in(f"a.{number}", "", lambda found: answers.append(name_of(found)))
        turns = 0
        while len(answers) < 10:
            turns += 1
            await asyncio.sleep(0.001)
        assert turns > 10


# -- files that change -------------------------------------------------------------------------------------------------


async def test_new_rules_are_in_force(folder: Folder) -> None:
    with opened(folder) as authority:
        ada = await signed_in(authority, token())
        assert isinstance(ada, Identity)
        await changed(authority, lambda: folder.write(ALL.replace('"news.>"', '"news.public"')))
        again = authority.standing(ada)
        assert isinstance(again, Identity)
        assert again.grants is not None
        assert again.grants.filters(Verb.SUBSCRIBE) == (b"user.ada.>", b"news.public")
        await changed(authority, lambda: folder.write(ALL + '[revoked]\nusers = ["ada"]'))
        assert name_of(authority.standing(ada)) == "TOKEN_EXPIRED"
        assert name_of(await signed_in(authority, token())) == "TOKEN_EXPIRED"
        assert name_of(await signed_in(authority, token(sub="eve"))) == "eve"


async def test_keys_rotate(folder: Folder) -> None:
    with opened(folder) as authority:
        old, new = token("EdDSA"), token("EdDSA", "next")
        ada = await signed_in(authority, old)
        assert isinstance(ada, Identity)
        assert name_of(await signed_in(authority, new)) == "UNAUTHENTICATED"
        folder.keys = [*folder.keys, key_of("EdDSA", "next")]
        await changed(authority, folder.write_keys)
        assert [name_of(await signed_in(authority, each)) for each in (old, new)] == ["ada", "ada"]
        folder.keys = folder.keys[1:]
        await changed(authority, folder.write_keys)
        assert [name_of(await signed_in(authority, each)) for each in (old, new)] == ["UNAUTHENTICATED", "ada"]
        assert name_of(authority.standing(ada)) == "TOKEN_EXPIRED"


async def test_a_known_token_with_another_hash(folder: Folder) -> None:
    with opened(folder) as authority:
        backup = await signed_in(authority, SECRETS["nightly"])
        assert isinstance(backup, Identity)
        again = cheap_hash(SECRETS["nightly"].partition(".")[2])
        first = ALL.partition('hash = "')[2].partition('"')[0]
        await changed(authority, lambda: folder.write(ALL.replace(first, again)))
        assert name_of(authority.standing(backup)) == "TOKEN_EXPIRED"
        assert name_of(await signed_in(authority, SECRETS["nightly"])) == "nightly"
        await changed(authority, lambda: folder.write(ALL.replace(first, cheap_hash("other"))))
        assert name_of(await signed_in(authority, SECRETS["nightly"])) == "UNAUTHENTICATED"


async def test_a_bad_file_leaves_the_old_rules(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    def told(event: str) -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.getMessage().startswith(f"{event} ")]

    with caplog.at_level(logging.INFO, "broker"), opened(folder) as authority:
        for count, text in enumerate(("[", "[roles]\na = 1", ALL.replace("keys.json", "later.json")), 1):
            folder.write(text)
            await until(lambda count=count: len(told("access_refused")) == count)  # type: ignore[misc]
            assert name_of(await signed_in(authority, token())) == "ada"
        await asyncio.sleep(10 * POLL_S)
        assert len(told("access_refused")) == 3, "a mistake is told once"
        # The set that the last file names comes later than the file.
        await changed(authority, lambda: os.replace(folder.path / "keys.json", folder.path / "later.json"))
        assert name_of(await signed_in(authority, token())) == "ada"
        assert len(told("access_changed")) == 1


async def test_a_file_that_others_may_write_is_not_taken(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "broker"), opened(folder) as authority:
        os.chmod(folder.write(ALL + '[revoked]\nusers = ["ada"]'), 0o666)
        await until(lambda: "access_refused " in caplog.text)
        assert name_of(await signed_in(authority, token())) == "ada"


async def test_no_start_with_a_bad_file(folder: Folder) -> None:
    before = threading.active_count()
    with pytest.raises(ConfigError), opened(folder, "["):
        pass
    assert threading.active_count() == before


async def test_time_ends_a_known_token(folder: Folder) -> None:
    now_s = [1_800_000_000.0]
    with opened(folder, now_s=lambda: now_s[0]) as authority:
        text = token(exp=1_800_000_060)
        ada = await signed_in(authority, text)
        assert isinstance(ada, Identity)
        assert ada.expires_s == 1_800_000_065
        now_s[0] = 1_800_000_065.0
        assert name_of(await signed_in(authority, text)) == "TOKEN_EXPIRED"
        assert name_of(authority.standing(ada)) == "TOKEN_EXPIRED"


async def test_other_ways_to_sign_in(folder: Folder) -> None:
    text = ROLES + '[[peers]]\nuid = 5\nuser = "p"\nroles = ["reader"]\n[anonymous]\nroles = ["reader"]\n'
    with opened(folder, text) as authority:
        assert name_of(authority.of_peer(5, 5, "")) == "p"
        assert authority.of_peer(6, 5, "") is None
        assert authority.of_certificate(["a"], "") is None
        assert name_of(authority.anonymous("")) == ""
        await changed(authority, lambda: folder.write(text + '[revoked]\nusers = ["p"]\n'))
        assert name_of(authority.of_peer(5, 5, "")) == "TOKEN_EXPIRED"


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_nobody_is_told_after_the_end(folder: Folder) -> None:
    answers: list[object] = []
    before = threading.active_count()
    with opened(folder) as authority:
        for number in range(20):
            authority.sign_in(f"nightly.{number}", "", answers.append)
    assert threading.active_count() == before
    await asyncio.sleep(0.01)
    assert answers == []


def test_a_loop_that_is_closed_first(folder: Folder) -> None:
    loop = asyncio.new_event_loop()
    authority = Authority(folder.write(ALL), loop.call_soon_threadsafe, poll_s=POLL_S)
    authority.sign_in("nightly.x", "", print)
    loop.close()
    folder.write(ALL + "# changed")
    authority._poller.join(20)
    authority.close()


async def test_memory_of_good_tokens_is_bounded(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from broker.access import remembered

    monkeypatch.setattr(remembered, "REMEMBERED_MAX", 5)
    with opened(folder) as authority:
        for number in range(12):
            assert name_of(await signed_in(authority, token(sub=f"u{number}"))) == f"u{number}"
        assert len(authority._remembered) == 5
        assert name_of(await signed_in(authority, token(pad="x" * 3000))) == "ada"
        assert len(authority._remembered) == 5
