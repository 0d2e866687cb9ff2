"""A Chromium without a screen, driven by the DevTools protocol: what a person does with a page, and what one sees.

It needs no package but `websockets`. A tab keeps what went wrong in it (exceptions, complaints of the page's policy) and
the addresses that it asked for, for tests to look at.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest
from websockets.asyncio.client import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from websockets.asyncio.client import ClientConnection

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: `apt install chromium`")
FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-extensions",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--no-first-run",
    "--mute-audio",
)
WAIT_S = 20.0
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "ArrowDown": (40, ""), "ArrowUp": (38, ""), "Tab": (9, "")}


class PageError(Exception):
    """What an expression raised in the page."""


class Tab:
    """A page in a context of its own: what one tab stores, another does not see.

    Attributes:
        errors: exceptions that nobody caught, and what the console was told as an error.
        asked: addresses that the page asked for, in order.
    """

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        self.errors: list[str] = []
        self.asked: list[str] = []

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        return await self._browser.call(method, self._session, **parameters)

    async def go(self, url: str) -> None:
        """Open an address."""
        failed = (await self.call("Page.navigate", url=url)).get("errorText")
        if failed:
            raise PageError(f"{url}: {failed}")
        await self.until("document.readyState === 'complete'")

    async def value(self, expression: str) -> Any:
        """Evaluate an expression, a promise's outcome included, and return what it is."""
        told = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            details = told["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return told["result"].get("value")

    async def until(self, expression: str, timeout_s: float = WAIT_S) -> Any:
        """Wait until an expression is true, looked at between two frames of the page; returns what it was then."""
        ask = f"""new Promise((told) => {{
            const end = performance.now() + {timeout_s * 1000};
            const look = () => {{
                let found;
                try {{ found = {expression}; }} catch (failure) {{ found = undefined; }}
                if (found || performance.now() > end) told(typeof found === 'object' ? found !== null : found); else setTimeout(look, 20);
            }};
            look();
        }})"""
        found = await self.value(ask)
        if not found:
            text = await self.value("document.body.innerText")
            raise TimeoutError(f"page: {expression} was not true within {timeout_s} s; errors {self.errors}; {text}")
        return found

    async def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        await self.until(f"document.querySelector({json.dumps(selector)})")
        at = await self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    async def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key: a character, or one of `KEYS`. Modifiers: 2 is Control."""
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), key)
        pressed = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": text} if text else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def write(self, selector: str, text: str) -> None:
        """Put a text into a field, in place of what is there."""
        name = json.dumps(selector)
        await self.until(f"document.querySelector({name})")
        await self.value(f"(() => {{ const e = document.querySelector({name}); e.focus(); e.select?.(); }})()")
        await self.call("Input.insertText", text=text)

    async def screen(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Have the page look as on such a screen."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def photograph(self, path: Path) -> None:
        """Write what is seen to a PNG."""
        data = (await self.call("Page.captureScreenshot", format="png"))["data"]
        path.write_bytes(base64.b64decode(data))

    def told(self, method: str, parameters: dict[str, Any]) -> None:
        """Keep what the browser tells of this tab."""
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(" ".join(str(each.get("value", each.get("description"))) for each in parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["source"] == "security":
            self.errors.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith("data:"):  # Chromium's own, such as the icon of a date field.
                self.asked.append(url)
        elif method == "Network.webSocketCreated":
            self.asked.append(parameters["url"])


class Chromium:
    """A browser process and the one connection to it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._asked = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    @asynccontextmanager
    async def start(cls, home: Path) -> AsyncIterator[Self]:
        """Start a browser whose files lie in `home`; it ends with the block, with all that it started."""
        assert PROGRAM is not None
        flags = list(FLAGS)
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to run as root with it.
        process = subprocess.Popen(
            [PROGRAM, *flags, f"--user-data-dir={home}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with connect(await _find_address(home, process), max_size=None, ping_interval=None) as socket:
                browser = cls(socket)
                try:
                    yield browser
                finally:
                    browser._reader.cancel()
                    await asyncio.gather(browser._reader, return_exceptions=True)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    async def tab(self) -> Tab:
        """Open an empty tab, in a context of its own."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = (await self.call("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await tab.call(f"{domain}.enable")
        return tab

    async def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """Call a method of the DevTools protocol, of the browser or of one tab."""
        self._asked += 1
        number = self._asked
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        await self._socket.send(json.dumps(message))
        async with asyncio.timeout(WAIT_S + 10):
            return await answer

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            answer = self._waiting.pop(message.get("id"), None)
            if answer is None:
                tab = self._tabs.get(message.get("sessionId"))
                if tab is not None:
                    tab.told(message["method"], message["params"])
            elif not answer.done():
                if "error" in message:
                    answer.set_exception(PageError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])


async def _find_address(home: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the browser has written where it listens."""
    path = home / "DevToolsActivePort"
    async with asyncio.timeout(WAIT_S):
        while not (path.exists() and path.read_text().count("\n") == 1):
            assert process.poll() is None, f"Chromium ended with {process.returncode}"
            await asyncio.sleep(0.02)
    port, way = path.read_text().split("\n")
    return f"ws://127.0.0.1:{port}{way}"
