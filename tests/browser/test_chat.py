"""Two tabs that chat, one of them cut off: nobody misses anything, nothing comes twice, and order is one for both."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.browser.chromium import BROWSER
from tests.browser.pictures import photograph
from tests.browser.served import Way

if TYPE_CHECKING:
    from tests.browser.chromium import Chromium, Tab
    from tests.browser.served import Server

SAID = "[...document.querySelectorAll('.talk li[data-seq]')].map((e) => [Number(e.dataset.seq), e.lastChild.textContent])"


async def enter(tab: Tab, address: str, name: str, room: str) -> None:
    await tab.go(f"http://{address}/chat#{room}")
    await tab.write(".enter [name=name]", name)
    await tab.press("Enter")
    await tab.until("!document.querySelector('[name=text]').disabled")


async def say(tab: Tab, text: str) -> None:
    await tab.write("[name=text]", text)
    await tab.press("Enter")


async def heard(tab: Tab, count: int) -> list[tuple[int, str]]:
    await tab.until(f"document.querySelectorAll('.talk li[data-seq]').length === {count}")
    return [(seq, text) for seq, text in await tab.value(SAID)]


@BROWSER
async def test_two_tabs_one_cut_off(browser: Chromium, server: Server) -> None:
    ada, ben = await browser.tab(), await browser.tab()
    async with Way.to(server.address) as way:
        await enter(ada, server.address, "Ada", "lobby")
        await enter(ben, way.address, "Ben", "lobby")
        await say(ada, "Is anybody there?")
        await heard(ben, 1)
        await say(ben, "I am. The lid closes in a moment …")
        await heard(ada, 2)

        way.cut()
        await ben.until("document.querySelector('.state').dataset.state === 'connecting'")
        assert await ben.value("!document.querySelector('.lost').hidden")
        for i in range(20):
            await say(ada, f"meanwhile {i}")
        await say(ben, "from the train")
        await say(ben, "and from the tunnel")
        assert await ben.value("document.querySelectorAll('.talk li.mine:not([data-seq])').length") == 2
        await heard(ada, 22)
        assert len(await heard(ben, 2)) == 2
        await photograph(ben, "chat-cut-off", 900, 560)

        way.join()
        both = [await heard(ada, 24), await heard(ben, 24)]
        assert both[0] == both[1]
        assert [seq for seq, _ in both[0]] == list(range(1, 25))
        assert [text for _, text in both[0]][-2:] == ["from the train", "and from the tunnel"]
        for tab in (ada, ben):
            assert await tab.value("document.querySelectorAll('.talk .note').length") == 0
            assert await tab.value("document.querySelectorAll('.talk li:not([data-seq])').length") == 0
        await ada.until("[...document.querySelectorAll('.mine .read')].at(-1).textContent === 'read by Ben'")
        await photograph(ada, "chat", 900, 560)
        for tab, address in ((ada, server.address), (ben, way.address)):
            assert tab.errors == []
            assert all(asked.split("/")[2] == address for asked in tab.asked)


@BROWSER
async def test_cut_again_and_again(browser: Chromium, server: Server) -> None:
    count = 60
    ada, ben = await browser.tab(), await browser.tab()
    async with Way.to(server.address) as way:
        await enter(ada, server.address, "Ada", "storm")
        await enter(ben, way.address, "Ben", "storm")
        for tab, who in ((ada, "a"), (ben, "b")):
            await tab.value(
                f"""window.talked = (async () => {{
                    const field = document.querySelector('[name=text]');
                    for (let i = 0; i < {count}; i += 1) {{
                        field.value = {json.dumps(who)} + i;
                        document.querySelector('.say').requestSubmit();
                        await new Promise((done) => setTimeout(done, 10));
                    }}
                }})(), true"""
            )
        for _ in range(4):
            await ben.until("document.querySelector('.state').dataset.state === 'open'")
            way.cut()
            await ben.until("document.querySelector('.state').dataset.state !== 'open'")
            way.join()
        both = [await heard(ada, 2 * count), await heard(ben, 2 * count)]
    assert both[0] == both[1]
    assert [seq for seq, _ in both[0]] == list(range(1, 2 * count + 1))
    for who in "ab":
        assert [text for _, text in both[0] if text.startswith(who)] == [f"{who}{i}" for i in range(count)]


@BROWSER
async def test_what_is_said_becomes_no_markup(browser: Chromium, server: Server) -> None:
    tab = await browser.tab()
    await enter(tab, server.address, "<b>Eve</b>", "markup")
    await say(tab, "<img src=x onerror=document.title='pwned'>")
    assert await heard(tab, 1) == [(1, "<img src=x onerror=document.title='pwned'>")]
    assert await tab.value("document.querySelectorAll('.talk img, .talk b').length") == 0
    assert tab.errors == []
