"""What every test gets without asking: a loop that is watched, and the choice of loops.

A test that is a coroutine runs on plain asyncio. One that asks for the fixture `loop_kind` runs twice, on plain asyncio
and on uvloop, and is told which. After each of them nothing may be left behind: an exception that reached the loop's
handler, or a task still running, fails the test that caused it and not one that happens to come later.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LEAK_TURNS_MAX = 10
"""Loop turns that tasks get to end after a test: cancelling and closing take a few; one that takes more is leaked."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take what a run is to be like (a hook of pytest)."""
    parser.addoption(
        "--evicting",
        action="store_true",
        help="tests/contract: all homes evict after each commit what they may, so that everything is loaded anew",
    )
    parser.addoption("--tls", action="store_true", help="tests/contract: what is reached by TCP is reached by TLS")


def pytest_configure() -> None:
    """Let Ctrl-C reach the commands that tests start, if the suite itself runs in the background (a hook of pytest).

    A shell without job control has such a command ignore it, and what is ignored all its children inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Name the loops that one test runs on (a hook of pytest-asyncio)."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if isinstance(item, pytest.Function) and "loop_kind" in item.fixturenames:
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture
async def loop_kind() -> str:
    """Run the test on each kind of loop: "asyncio", then "uvloop"."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


@pytest.fixture
async def loop_exceptions() -> AsyncIterator[list[dict[str, Any]]]:
    """Watch the test's loop, and fail when something was left behind.

    Yields the contexts that reached the loop's exception handler. A test that provokes one looks at it here and
    clears the list.
    """
    loop = asyncio.get_running_loop()
    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    yield contexts
    leaked = await running_tasks()
    for task in leaked:
        task.cancel()
    # A task whose exception nobody took complains when it is freed, and a traceback may hold it in a cycle.
    gc.collect(1)
    loop.set_exception_handler(None)
    if contexts:
        pytest.fail(f"unhandled in the loop: {contexts}", pytrace=False)
    if leaked:
        pytest.fail(f"tasks left running: {leaked}", pytrace=False)


async def running_tasks() -> set[asyncio.Task[Any]]:
    """Return the loop's other tasks that do not end by themselves within LEAK_TURNS_MAX turns."""
    tasks: set[asyncio.Task[Any]] = set()
    for _ in range(LEAK_TURNS_MAX):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            break
        await asyncio.sleep(0)
    return tasks


@pytest.fixture(autouse=True)
def watched_loop(request: pytest.FixtureRequest) -> None:
    """Put `loop_exceptions` under every test that has a loop, before any of its other fixtures."""
    if request.node.get_closest_marker("asyncio") is not None:
        request.getfixturevalue("loop_exceptions")
