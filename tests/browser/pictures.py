"""Pictures of the pages: those of a run in `build/pictures`, with BROKER_PICTURES=1 the README's in `screens`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.browser.served import ROOT

if TYPE_CHECKING:
    from tests.browser.chromium import Tab

KEPT = ROOT / "tests" / "browser" / "screens"
WANTED = {"overview", "overview-dark", "overview-phone", "channels", "chat"}
MADE = ROOT / "build" / "pictures"


async def photograph(tab: Tab, name: str, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
    """Take a picture of a tab as it is on such a screen."""
    folder = KEPT if os.environ.get("BROKER_PICTURES") and name in WANTED else MADE
    folder.mkdir(parents=True, exist_ok=True)
    await tab.screen(width, height, dark=dark, phone=phone)
    # Plots follow their size in the next frame, and are drawn in the one after that.
    await tab.value(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))"
    )
    await tab.photograph(folder / f"{name}.png")
