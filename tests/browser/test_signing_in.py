"""The console of a broker that asks who one is: a box, a token, and nothing of it anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.access.static import hash_of
from tests.browser.chromium import BROWSER
from tests.browser.served import Server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.browser.chromium import Chromium

SECRET = "a-secret-that-is-long-enough-to-be-one"
ACCESS = """
[roles.operator]
subscribe = [">"]
publish = [">"]
history = [">"]
consume = [">"]
manage = [">"]

[tokens.console]
hash = "HASH"
user = "ada"
roles = ["operator"]
"""


@BROWSER
async def test_a_token_opens_the_console(browser: Chromium, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with Server(folder, ACCESS.replace("HASH", hash_of(SECRET))) as server:
        tab = await browser.tab()
        await tab.go(f"http://{server.address}/")
        await tab.until("document.querySelector('.sign-in-box').open")
        assert "UNAUTHENTICATED" in await tab.value("document.querySelector('.sign-in-box .outcome').textContent")
        await tab.write(".sign-in-box [name=token]", "console.nonsense")
        await tab.press("Enter")
        await tab.until("document.querySelector('.sign-in-box .outcome').textContent.includes('no such id')")
        assert await tab.value("document.querySelector('.state').dataset.state") != "open"
        await tab.write(".sign-in-box [name=token]", f"console.{SECRET}")
        await tab.press("Enter")
        await tab.until("document.querySelector('.state').dataset.state === 'open'")
        await tab.until("!document.querySelector('.sign-in-box').open")
        await tab.until("document.querySelectorAll('.tile').length === 8")
        assert not any(SECRET in asked for asked in tab.asked)
        assert SECRET not in await tab.value("document.documentElement.outerHTML")
        assert SECRET not in (folder / "log").read_text()
