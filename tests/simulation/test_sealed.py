"""Whatever asks for real time, for a thread or for a loop from outside is seen, and ends the life."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import broker.node.node
from broker.node.node import Node
from tests.simulation.kernel import LifeFailed
from tests.simulation.life import Life

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 0

turn = Node._turn


def read_the_clock(node: Node) -> None:
    time.monotonic()


def sleep(node: Node) -> None:
    time.sleep(0)


def start_a_thread(node: Node) -> None:
    threading.Thread(target=print).start()


def call_the_loop_from_outside(node: Node) -> None:
    kernel: Any = node.loop.kernel  # type: ignore[attr-defined]
    kernel.after(0, lambda: node.loop.call_soon(print))


def leave_an_exception_to_the_loop(node: Node) -> None:
    node.loop.call_soon(lambda: 1 // 0)


def open_a_socket(node: Node) -> None:
    asyncio.ensure_future(node.loop.sock_connect(None, ("127.0.0.1", 9)))  # type: ignore[arg-type]  # noqa: RUF006


@pytest.mark.parametrize(
    "mistake",
    [read_the_clock, sleep, start_a_thread, call_the_loop_from_outside, leave_an_exception_to_the_loop, open_a_socket],
)
def test_it_is_seen(mistake: Callable[[Node], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(self: Node) -> None:
        mistake(self)
        turn(self)

    monkeypatch.setattr(Node, "_turn", mistaken)
    with pytest.raises(LifeFailed):
        Life(SEED).run()


def test_a_function_that_was_put_aside_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.node.node, "rest", time.sleep, raising=False)
    with pytest.raises(LifeFailed, match="has put aside"):
        Life(SEED).run()


def what_is_replaced() -> list[Any]:
    outside = [time.time, time.sleep, os.urandom, random.random, secrets.token_bytes, threading.Thread.start]
    return [*outside, vars(broker.node.node)["Log"], vars(broker.node.node)["CommitThread"]]


def test_everything_is_as_before_after_a_life() -> None:
    before = what_is_replaced()
    Life(SEED).run()
    assert what_is_replaced() == before
