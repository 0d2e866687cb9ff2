"""A process that was forked: it may not use its parent's bus, does not hold its socket, and can open one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.contract.homes import Server

ROOT = Path(__file__).parents[2]

PROGRAM = """\
import os, signal, sys, threading, traceback
from broker import BrokerError
from broker.blocking import connect

url = sys.argv[1]
bus = connect(url)
subscription = bus.subscribe("s.fork.*")
descriptor = bus._connection._reading.fileno()
ended = threading.Event()


def publish(number):
    # Somebody has the lock at most times.
    while not ended.is_set():
        bus.post_window([(f"s.fork.{number}", bytes(200))] * 50).wait()


crowd = [threading.Thread(target=publish, args=(number,)) for number in range(3)]
for one in crowd:
    one.start()


def child():
    signal.alarm(20)
    calls = [
        lambda: bus.post("s.fork.x", b""), lambda: bus.publish("s.fork.x", b""), bus.flush, bus.ping, bus.stats,
        lambda: bus.subscribe("s.fork.x"), subscription.next, lambda: next(iter(subscription)),
    ]
    for call in calls:
        try:
            call()
        except BrokerError as failure:
            assert failure.name == "FORKED", failure
        else:
            raise AssertionError(call)
    subscription.close()
    bus.close()
    null = os.stat(os.devnull)
    assert os.fstat(descriptor).st_rdev == null.st_rdev, "the parent's socket is still open here"
    with connect(url) as mine:
        assert mine.publish("s.child", b"").sequence >= 1


statuses = []
for _ in range(8):
    number = os.fork()
    if number == 0:
        status = 1
        try:
            child()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    statuses.append(os.waitpid(number, 0)[1])
ended.set()
for one in crowd:
    one.join()
assert statuses == [0] * 8
subscription.close()
assert bus.channel("s.child").head == 8
bus.close()
print("whole")
"""


def test_a_child_has_neither_the_bus_nor_its_socket(running: Server) -> None:
    command = [sys.executable, "-c", PROGRAM, running.tcp_url]
    said = subprocess.run(command, cwd=ROOT, env=running.environment(), capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stdout) == (0, "whole\n"), said.stderr
