"""The console in a browser, against a real server with something going on in it."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from broker import connect
from tests.browser.chromium import BROWSER
from tests.browser.pictures import photograph
from tests.browser.served import Way

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.bus import Bus
    from tests.browser.chromium import Chromium, Tab
    from tests.browser.served import Server

PLOT_S = 25 if os.environ.get("BROKER_PICTURES") else 1
"""How long the plots of a picture run."""
TILES = (
    "Object.fromEntries([...document.querySelectorAll('.tile')]"
    ".map((tile) => [tile.children[0].textContent, tile.children[1].textContent]))"
)
DRAWN = """[...document.querySelectorAll('canvas')].every((canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size > 4;
})"""


@asynccontextmanager
async def traffic(server: Server) -> AsyncIterator[Bus]:
    """Have something to look at: channels, a queue that nobody works on, and messages that come and go."""
    url = f"broker://{server.native}"
    async with connect(url, name="orders-service") as bus, connect(url, name="dashboard") as reader:
        for i in range(40):
            order = b'{"order": %d, "items": [1, 2], "note": "gr\xc3\xbcn"}' % i
            await bus.publish(f"orders.{i % 8}", order, key=b"k", headers={"kind": "order"})
        await bus.publish("files.raw", bytes(range(256)))
        await bus.create_queue("billing", "orders.>", dead_letter="dead.billing")
        ticks = [reader.subscribe("live.>") for _ in range(4)]
        reading = [asyncio.create_task(read(each)) for each in ticks]
        publishing = asyncio.create_task(publish(bus))
        try:
            yield bus
        finally:
            for task in (publishing, *reading):
                task.cancel()
            await asyncio.gather(publishing, *reading, return_exceptions=True)


async def publish(bus: Bus) -> None:
    for n in range(1, 1 << 20):
        for _ in range(50):
            bus.post("live.ticks", b"%d" % n)
        bus.post("orders.live", b'{"tick": %d}' % n)
        await asyncio.sleep(0.02)


async def read(subscription: object) -> None:
    async for _ in subscription:  # type: ignore[attr-defined]
        pass


async def visit(tab: Tab, address: str, view: str) -> None:
    await tab.go(f"http://{address}/#/{view}")
    await tab.until("document.querySelector('.state').dataset.state === 'open'")


@BROWSER
async def test_views(browser: Chromium, server: Server) -> None:
    """All views in one visit: a server with traffic and a browser cost more than what is looked at."""
    tab = await browser.tab()
    async with traffic(server):
        await tab.screen(1280, 860)
        await visit(tab, server.address, "overview")
        await tab.until("document.querySelectorAll('.tile').length === 8")
        await tab.until(f"parseFloat(({TILES}).in) > 0")
        await tab.until(DRAWN)
        await tab.until("document.querySelector('.findings') || document.querySelector('strong.good')")
        await asyncio.sleep(PLOT_S)
        await photograph(tab, "overview", 1280, 860)
        await photograph(tab, "overview-dark", 1280, 860, dark=True)
        await tab.press("2")
        await channels(tab)
        await tab.press("3")
        await consumers(tab)
        await tab.press("4")
        await tab.until("[...document.querySelectorAll('td')].some((cell) => cell.textContent === 'orders-service')")
        await photograph(tab, "connections", 1280, 600)
        await tab.press("5")
        await tab.until("document.querySelector('main').innerText.includes('ping_interval_s')")
        await photograph(tab, "settings", 1280, 860)
        assert await tab.value("document.title") == "configuration · broker"
    assert tab.errors == []
    assert all(asked.split("/")[2] == server.address for asked in tab.asked), tab.asked


async def channels(tab: Tab) -> None:
    await tab.until("document.querySelectorAll('.list a').length >= 9")
    await tab.press("/")
    await tab.call("Input.insertText", text="orders.")
    await tab.until("[...document.querySelectorAll('.list .name')].every((e) => e.textContent.startsWith('orders.'))")
    await tab.click(".list a[href='#/channels/orders.live']")
    await tab.until("document.querySelector('.facts')?.innerText.includes('synced')")
    await tab.until("document.querySelectorAll('.message').length > 25")
    first = await tab.value("document.querySelector('.message strong').textContent")
    await tab.until(f"document.querySelector('.message strong').textContent !== '{first}'")
    await photograph(tab, "channels", 1280, 860)
    await tab.click(".list a[href='#/channels/orders.3']")
    await tab.until("document.querySelector('.pair h2').textContent === 'orders.3'")
    await tab.until("document.querySelector('.pair .facts')")  # It moves what is below it.
    await tab.click("[data-tab=history]")
    await tab.until("document.querySelector('[data-tab=history][aria-selected=true]')")
    await tab.until("document.querySelectorAll('.message').length === 5")
    text = await tab.value("document.querySelector('.message').innerText")
    assert '"order": 3' in text
    assert "grün" in text
    assert "key k" in text
    assert 'kind: "order"' in text
    await tab.write("input[placeholder=sequence]", "4")
    await tab.press("Enter")
    await tab.until("document.querySelectorAll('.message').length === 2")
    await tab.click("[data-tab=history]")
    await tab.value("""(() => {
        const field = document.querySelector('input[type=datetime-local]');
        field.value = '2020-01-01T00:00:00';
        field.form.requestSubmit();
    })()""")
    await tab.until("document.querySelectorAll('.message').length === 5")
    await tab.value("document.querySelector('h2').focus(); document.activeElement.blur()")
    await tab.press("p")
    await tab.until("document.querySelector('.publish-box').open")
    assert await tab.value("document.querySelector('.publish-box [name=channel]').value") == "orders.3"
    await tab.write(".publish-box [name=payload]", '{"from": "the console"}')
    await tab.write(".publish-box [name=headers]", '{"by": "hand"}')
    await tab.press("Enter", 2)
    await tab.until("document.querySelector('.publish-box .outcome').textContent.endsWith(':6')")
    await tab.press("Escape")
    await tab.click("[data-tab=live]")
    await tab.until("document.querySelector('.message')?.innerText.includes('the console')")
    assert await tab.value("document.querySelectorAll('.message').length") == 6


async def consumers(tab: Tab) -> None:
    await tab.click(".list a[href='#/consumers/billing']")
    await tab.until("document.querySelector('.pair h2')?.textContent === 'billing'")
    await tab.until("document.querySelector('.said').hidden")
    await tab.until("document.querySelector('.facts')?.innerText.includes('nobody takes jobs')")
    await tab.until("document.querySelectorAll('tbody tr').length > 10")
    await photograph(tab, "consumers", 1280, 700)
    await tab.until("!document.querySelector('.card button').disabled")
    await tab.click(".pair .stack .card button")
    await tab.until("document.querySelector('.facts')?.innerText.includes('paused')")
    await tab.click(".pair .stack .card button")
    await tab.until("!document.querySelector('.facts')?.innerText.includes('paused')")


@BROWSER
async def test_phone(browser: Chromium, server: Server) -> None:
    tab = await browser.tab()
    async with traffic(server):
        await tab.screen(390, 844, phone=True)
        for view in (
            "overview",
            "channels",
            "channels/orders.live",
            "consumers/billing",
            "connections",
            "configuration",
        ):
            await visit(tab, server.address, view)
            await tab.until("document.querySelector('main').innerText.length > 40")
            wide = "[document.documentElement.scrollWidth, innerWidth]"
            found, screen = await tab.value(wide)
            assert found <= screen, f"{view}: {found} pixels wide on a screen of {screen}"
        await visit(tab, server.address, "overview")
        await tab.until("document.querySelectorAll('.tile').length >= 8")
        await asyncio.sleep(3)
        await photograph(tab, "overview-phone", 390, 844, phone=True)
        await visit(tab, server.address, "channels/orders.live")
        await tab.until("document.querySelectorAll('.message').length > 5")
        await photograph(tab, "channel-phone", 390, 844, dark=True, phone=True)
    assert tab.errors == []


@BROWSER
async def test_cut_off_and_back(browser: Chromium, server: Server) -> None:
    tab = await browser.tab()
    async with Way.to(server.address) as way, connect(f"broker://{server.native}") as bus:
        await bus.publish("cut.off", b"1")
        await visit(tab, way.address, "channels/cut.off")
        await tab.until("document.querySelectorAll('.message').length === 1")
        way.cut()
        await tab.until("document.querySelector('.state').textContent === 'reconnecting'")
        for i in range(2, 12):
            await bus.publish("cut.off", b"%d" % i)
        way.join()
        await tab.until("document.querySelectorAll('.message:not(.note)').length === 11")
        told = await tab.value("[...document.querySelectorAll('.message:not(.note) pre')].map((e) => e.textContent)")
        assert told == [str(i) for i in range(11, 0, -1)]


@BROWSER
async def test_a_client_in_ten_lines(browser: Chromium, server: Server) -> None:
    """The package in a page of the broker's own origin: by the address that the README names."""
    tab = await browser.tab()
    await tab.go(f"http://{server.address}/")
    told = await tab.value("""(async () => {
        const { connect } = await import("/client/broker.js");
        const bus = await connect("/v1/socket");
        const receipt = await bus.publish("ten.lines", { n: 1 });
        for await (const message of bus.subscribe("ten.>", { from: "all" })) {
            await bus.close();
            return [receipt.position === message.position, message.channel, message.json()];
        }
    })()""")
    assert told == [True, "ten.lines", {"n": 1}]


@BROWSER
async def test_a_function_that_fails_stops_nothing(browser: Chromium, server: Server) -> None:
    tab = await browser.tab()
    await tab.go(f"http://{server.address}/")
    told = await tab.value("""(async () => {
        const { connect } = await import("/client/broker.js");
        const bus = await connect("/v1/socket");
        const seen = [];
        await new Promise((done) => {
            bus.subscribe("that.fails", { from: "all" }, (message) => {
                seen.push(message.text);
                if (seen.length === 3) done();
                if (message.text === "1") throw new Error("on purpose");
            });
            for (const text of ["1", "2", "3"]) void bus.publish("that.fails", text);
        });
        await bus.close();
        return seen;
    })()""")
    assert told == ["1", "2", "3"]
    assert len(tab.errors) == 1
    assert "on purpose" in tab.errors[0]
