"""Pictures of the pages: of every run in `build/pictures`, and with BROKER_PICTURES=1 in `docs/pictures` for the README."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.browser.served import ROOT

if TYPE_CHECKING:
    from tests.browser.chromium import Tab

KEPT = ROOT / "docs" / "pictures"
MADE = ROOT / "build" / "pictures"


async def photograph(tab: Tab, name: str, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
    """Take a picture of a tab as it is on such a screen."""
    folder = KEPT if os.environ.get("BROKER_PICTURES") else MADE
    folder.mkdir(parents=True, exist_ok=True)
    await tab.screen(width, height, dark=dark, phone=phone)
    # Plots follow their size in the next frame, and are drawn in the one after that.
    await tab.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))")
    await tab.photograph(folder / f"{name}.png")
