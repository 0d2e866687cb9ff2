"""`storm`: a crowd of clients loses its connections at once and comes back, beside a few who are to notice nothing.

The crowd is a process of its own (broker/bench/crowd.py). Here are those who notice nothing: the native driver
publishes to a channel of its own at a steady rate, before and during the storm, and times every delivery.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from broker.bench.crowd import Plan
from broker.bench.load import Load, Over, complaints, run_until
from broker.bench.result import latency_of
from broker.bench.server import Probe, Target
from broker.model.errors import error

if TYPE_CHECKING:
    from broker.bench.options import Options
    from broker.bench.result import Result

MEMBERS: Final = 50
"""Clients that have a channel in common."""
CROWD_RATE: Final = 200
"""Messages a second to the crowd's channels, each to MEMBERS clients."""
STORM_S_MAX: Final = 120.0
SETTLED_S: Final = 1.0
"""How long the server is left alone after the crowd has gathered."""


class CrowdProcess:
    """The process of a crowd, as a context.

    Args:
        plan: what it does.
    """

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "broker.bench.crowd"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tell(json.dumps(asdict(plan)))

    def __enter__(self) -> CrowdProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for its answer.

        Raises:
            BrokerError: UNAVAILABLE; it could not do it, or has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"failure": "it ended without a word"}
        if "failure" in answer:
            raise error("UNAVAILABLE", f"the crowd: {answer['failure']}")
        return answer


class Hearing:
    """Waits for a crowd's answer on a thread, so that the driver can go on meanwhile."""

    def __init__(self, crowd: CrowdProcess) -> None:
        self._crowd = crowd
        self._answer: dict[str, Any] = {}
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="bench-crowd", daemon=True)
        self._until_s = time.monotonic() + STORM_S_MAX
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer = self._crowd.hear()
        except Exception as failure:
            self._failure = failure

    def look(self) -> None:
        """Raise Over when it has answered, or has had all the time that it gets; the driver calls it."""
        if not self._thread.is_alive() or time.monotonic() > self._until_s:
            raise Over

    def answer(self) -> dict[str, Any]:
        """Return the answer.

        Raises:
            BrokerError: UNAVAILABLE; there is none.
        """
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
            raise error("UNAVAILABLE", f"the crowd: no answer within {STORM_S_MAX:g} s")
        return self._answer


def run_storm(options: Options, target: Target) -> Result:
    """Gather a crowd, cut it off, and see how long it takes to be back and who notices.

    Raises:
        BrokerError: the server refused a connection or a subscription, or the crowd is not back in time.
    """
    with ExitStack() as stack:
        probe = Probe(target)
        load = Load(options, target, stack)
        load.add_publishers()
        load.add_subscribers()
        crowd = stack.enter_context(CrowdProcess(plan_of(options, load, target)))
        gathered = crowd.hear()
        time.sleep(SETTLED_S)
        idle = probe.figures()
        before = load.run(probe)
        before_us = latency_of(load.driver.latency)
        load.driver.latency.clear()
        calm = probe.figures()
        hearing = Hearing(crowd)
        crowd.tell("drop")
        begun = time.monotonic()
        during = run_until(load, hearing.look, STORM_S_MAX)
        storm_s = time.monotonic() - begun
        after = probe.figures()
        back = hearing.answer()
        crowd.tell("finish")
        end = crowd.hear()
        result = load.result(during)
        result.errors += complaints(before, options)
    base_per_s = (calm.cpu_s - idle.cpu_s) / before.seconds if before.seconds else 0.0
    result.seconds = storm_s
    # The run during the storm was cut short: what the driver counted since it was made is there, its outcome is not.
    result.messages = load.driver.acked
    result.deliveries = before.deliveries + load.driver.latency.count
    result.lost += end["lost"]
    result.duplicated += end["duplicated"]
    if end["restarted"]:
        result.errors.append(f"{end['restarted']} channels were not resumed where they were")
    result.server_cpu_s = after.cpu_s - calm.cpu_s
    result.fsyncs = after.fsyncs - calm.fsyncs
    result.server_memory_bytes = probe.memory_bytes_max
    during_us = result.latency_us
    result.extra |= {
        "clients": options.clients,
        "gathered_s": round(gathered["seconds"], 3),
        "live_s": round(back["seconds"], 3),
        "refused": back["refused"],
        "cut": back["cut"],
        "crowd_delivered": end["delivered"],
        "p99_before_us": before_us["p99"],
        "p99_during_us": during_us["p99"],
        "p99_ratio": round(during_us["p99"] / before_us["p99"], 2) if before_us["p99"] else 0.0,
        "max_during_us": during_us["max"],
        "cpu_us_per_client": round((result.server_cpu_s - base_per_s * storm_s) / options.clients * 1e6, 1),
        "crowd_cpu_s": round(end["cpu_s"], 3),
    }
    return result


def plan_of(options: Options, load: Load, target: Target) -> Plan:
    """Return what the crowd is to do: channels of its own, in the same room."""
    total = max(options.channels, options.clients * options.channels // MEMBERS)
    names = [f"{load.room}.crowd.{number}" for number in range(total)]
    return Plan(target.url, names, options.clients, options.channels, CROWD_RATE, options.payload)
