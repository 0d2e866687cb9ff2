"""The examples of broker/wire/http.md, typed as they stand there: what they print is what the document shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contract.homes import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.http_api.client import Http

DOCUMENT = (Path(__file__).parents[2] / "broker/wire/http.md").read_text(encoding="utf-8")
EXAMPLES: list[tuple[str, str]] = re.findall(r"^```sh\n(.*?)^```\n\n```(?:json|text)\n(.*?)^```", DOCUMENT, re.M | re.S)
STREAM_S = 2


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    running = Server(config='[server]\nweb = "127.0.0.1:0"\n[storage]\nreserve_bytes = 0\n')
    try:
        yield running.start()
    finally:
        running.stop()


def same(text: str) -> list[str]:
    """Return the lines of an output, with places, times and epochs as if they were always the same."""
    masked = re.sub(r"\d{13,}", "N", re.sub(r"[0-9a-f]{32}:\d+", "JOURNAL:G", text))
    return [line for line in re.sub(r"\}(?=\{\")", "}\n", masked).splitlines() if line]


def test_examples_print_what_is_shown(http: Http, tmp_path: Path) -> None:
    assert len(EXAMPLES) == DOCUMENT.count("```sh") == 8
    for command, shown in EXAMPLES:
        typed = command.replace("127.0.0.1:4780", http.address)
        # A stream lasts; whoever looks at one leaves it in the end.
        typed = typed.replace("curl -sN", f"curl -sN --max-time {STREAM_S}")
        done = subprocess.run(
            ["bash", "-c", typed], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode in ((28,) if "-sN" in command else (0,)), (command, done)
        assert same(done.stdout) == same(shown), command
