"""The browser client: that what is served is what its source says, and what it does in Node.

The compiler and the package `ws` come by `make client`; what runs in a browser is tested with the pages.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker import __version__
from tests.browser.served import ROOT

if TYPE_CHECKING:
    from tests.browser.served import Server

CLIENT = ROOT / "broker" / "web" / "client"
MODULES = ROOT / "build" / "node" / "node_modules"
PACKAGES = pytest.mark.skipif(
    shutil.which("node") is None or not MODULES.exists(), reason="needs Node and npm's packages: `make client`"
)


async def run(*command: str | Path, **settings: str) -> None:
    """Run a program; what it says is the failure."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, **settings}
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 100)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()


@PACKAGES
async def test_what_is_served_is_what_the_compiler_makes(tmp_path: Path) -> None:
    await run(MODULES / ".bin" / "tsc", "-p", CLIENT, "--outDir", tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in CLIENT.iterdir() if path.name.endswith((".js", ".d.ts"))}
    assert made.keys() == kept.keys()
    for name, text in made.items():
        assert text == kept[name], f"{name}: `make client`"


@PACKAGES
async def test_pages_have_the_types_that_they_say() -> None:
    await run(MODULES / ".bin" / "tsc", "-p", ROOT / "tests" / "browser" / "jsconfig.json")


@PACKAGES
async def test_in_node(server: Server) -> None:
    await run(
        "node",
        "--test",
        ROOT / "tests" / "browser" / "client.test.mjs",
        BROKER_URL=f"ws://{server.address}/v1/socket",
        CLIENT=str(CLIENT / "broker.js"),
        WS=str(MODULES / "ws" / "wrapper.mjs"),
    )


def test_package_is_of_this_version_and_whole() -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    assert package["version"] == __version__
    exported = package["exports"]["."]
    assert (CLIENT / exported["default"]).exists()
    assert (CLIENT / exported["types"]).exists()
