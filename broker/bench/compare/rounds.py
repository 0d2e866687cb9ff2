"""The order of things: who takes part, and round for round one measurement of each contender after the other.

A machine changes while it is measured: others use it, it grows warm, its disk's cache fills. Contenders that take turns
share what happens, so that their ratio is worth more than either of their figures.
"""

from __future__ import annotations

import datetime
import sqlite3
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from broker.bench.compare import clients, embedded, native, queues
from broker.bench.compare.catalogue import BROKERS, PEERS
from broker.bench.compare.outcome import OURS, Comparison, Measurement, Row, Standing
from broker.bench.compare.servers import StandingServer, StartedServer
from broker.bench.compare.works import QUEUE_PEERS, WORKS, By, Mode, Work
from broker.bench.machine import commit_us_p50, describe_machine, describe_python, revision
from broker.bench.works import keep_to
from broker.model.errors import BrokerError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from broker.bench.client import Opener
    from broker.bench.compare.native import Server
    from broker.bench.peers.work import Address

EMBEDDED: Final = "embedded"
"""What stands for all libraries of queues in `--with`."""

INSTALL_MODULES: Final = "pip install 'broker-bus[compare]'"

LIBRARIES: Final = {
    "redis": ("redis", "hiredis"),
    "nats": ("nats-py",),
    "persist-queue": ("persist-queue",),
    "litequeue": ("litequeue",),
    "diskcache": ("diskcache",),
    "huey": ("huey",),
}
"""Distributions whose versions belong to the figures."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be compared.

    Attributes:
        peers: with whom; EMBEDDED stands for the libraries.
        works: what, by name.
        rounds: how often, from 1.
        seconds: how long each measurement publishes.
        payload: bytes of a message.
        patience_s: how long nothing may come before the rest counts as lost.
        addresses: of peers that somebody else runs.
        cores: of servers and of the driver; None for all.
    """

    peers: tuple[str, ...]
    works: tuple[str, ...]
    rounds: int = 3
    seconds: float = 5.0
    payload: int = 128
    patience_s: float = 10.0
    addresses: Mapping[str, Address] | None = None
    cores: tuple[set[int], set[int]] | None = None


@dataclass(frozen=True, slots=True)
class Homes:
    """How the Python API is opened. The homes are not this package's to choose: it is handed them."""

    connect: Opener
    open_embedded: Opener


def libraries(plan: Plan) -> tuple[str, ...]:
    """Return the libraries of queues that take part."""
    return QUEUE_PEERS if EMBEDDED in plan.peers else ()


def missing(plan: Plan) -> dict[str, str]:
    """Return who cannot take part because something is not installed, with the command that installs it."""
    found = {}
    addresses = plan.addresses or {}
    for name in plan.peers:
        if name in PEERS and name not in addresses and BROKERS[name].find() is None:
            found[name] = BROKERS[name].install
    by_client = any(WORKS[work].by is By.CLIENT for work in plan.works)
    for name in plan.peers:
        lacking = clients.missing_modules(name) if by_client else []
        if lacking:
            found[f"{name} (Python: {', '.join(lacking)})"] = INSTALL_MODULES
    if any(WORKS[work].by is By.QUEUE for work in plan.works):
        found |= {name: INSTALL_MODULES for name in libraries(plan) if embedded.missing_module(name)}
    return found


def parties(plan: Plan, absent: Mapping[str, str]) -> dict[str, list[str]]:
    """Return of each work who takes part in it: ours, and the peers that are here and have a mode for it."""
    gone = {name.partition(" ")[0] for name in absent if " " not in name}
    clientless = {name.partition(" ")[0] for name in absent if " " in name}
    here = [OURS, *(name for name in (*plan.peers, *libraries(plan)) if name not in gone)]
    found = {}
    for name in plan.works:
        work = WORKS[name]
        who = [each for each in here if each in work.modes]
        found[name] = [each for each in who if work.by is not By.CLIENT or each not in clientless]
    return {name: who for name, who in found.items() if len(who) > 1}


def check_addresses(plan: Plan) -> None:
    """See that whoever somebody else runs is who he should be, before anything is measured.

    Raises:
        BrokerError: a peer is not there, or is something else.
    """
    for name, address in (plan.addresses or {}).items():
        StandingServer(address, BROKERS[name].protocol)


class Rounds:
    """A comparison under way.

    Args:
        plan: what is to be done.
        homes: how the Python API is opened.
        absent: who cannot take part, with what installs it.
    """

    def __init__(self, plan: Plan, homes: Homes, absent: Mapping[str, str]) -> None:
        self._plan = plan
        self._homes = homes
        self.parties = parties(plan, absent)
        self._total = plan.rounds * sum(map(len, self.parties.values()))
        self._done = 0
        settings: dict[str, Any] = {"rounds": plan.rounds, "seconds": plan.seconds, "payload": plan.payload}
        self.comparison = Comparison(
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            revision=revision(),
            python=describe_python(),
            machine=describe_machine(),
            commit_us_p50=0.0,
            settings=settings,
            versions=self._versions(),
            missing=dict(absent),
        )

    def _versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in dict.fromkeys(name for who in self.parties.values() for name in who):
            program = BROKERS[name].find() if name in BROKERS else None
            if name in (self._plan.addresses or {}):
                found[name] = "as it runs at its address"
            elif program is not None:
                found[name] = BROKERS[name].version(program)
            for library in LIBRARIES.get(name, ()):
                try:
                    found[library if name in QUEUE_PEERS else f"{library} (Python)"] = metadata.version(library)
                except metadata.PackageNotFoundError:
                    continue
        if EMBEDDED in self._plan.peers:
            found["SQLite"] = sqlite3.sqlite_version
        return found

    def run(self, tell: Callable[[int, int, str], None] = lambda *_: None) -> Comparison:
        """Do all of it. What goes wrong in a measurement, or keeps its server from starting, is in its errors.

        Args:
            tell: is called before each measurement with how many there are, which this is, and what it is.
        """
        self.comparison.commit_us_p50 = commit_us_p50()
        with ExitStack() as stack:
            keep_to(stack, self._plan.cores[1] if self._plan.cores else None)
            for name, who in self.parties.items():
                self._run_row(WORKS[name], who, tell)
        return self.comparison

    def _run_row(self, work: Work, who: Sequence[str], tell: Callable[[int, int, str], None]) -> None:
        row = Row(work.name, work.title, work.figures)
        self.comparison.rows.append(row)
        row.standings += [self._standing(work, name) for name in who]
        for number in range(1, self._plan.rounds + 1):
            for standing in row.standings:
                self._done += 1
                tell(self._total, self._done, f"{work.title}: {standing.contender}, round {number}")
                # Who has failed once would only fail again, and may take its time.
                if not standing.errors:
                    standing.rounds.append(self._measure(work, standing))

    def _standing(self, work: Work, name: str) -> Standing:
        mode = work.modes[name]
        return Standing(name, mode.how, mode.promise, offered=work.rate > 0)

    def _measure(self, work: Work, standing: Standing) -> Measurement:
        plan, name = self._plan, standing.contender
        mode = work.modes[name]
        if work.by is By.QUEUE:
            return embedded.measure(
                name,
                work,
                seconds=plan.seconds,
                payload=plan.payload,
                patience_s=plan.patience_s,
                open_embedded=self._homes.open_embedded,
            )
        try:
            with self._server(name, mode, work) as server:
                if isinstance(server, StartedServer):
                    standing.configuration = server.configuration
                return self._measure_on(server, work, mode, name)
        except BrokerError as failure:
            return Measurement(errors=[str(failure)])

    def _server(self, name: str, mode: Mode, work: Work) -> Server:
        broker, addresses = BROKERS[name], self._plan.addresses or {}
        if name not in addresses:
            cores = self._plan.cores[0] if self._plan.cores else None
            return StartedServer(f"{name} ({mode.variant})", broker.protocol, broker.launch(mode.variant), cores)
        if work.stored:
            raise error(
                "INVALID_CONFIG",
                f"{work.name}: got {name} at an address, expected one whose durability is known",
                f"leave out --address {name}=..., or name works with --works that store nothing",
            )
        return StandingServer(addresses[name], broker.protocol)

    def _measure_on(self, server: Server, work: Work, mode: Mode, name: str) -> Measurement:
        plan = self._plan
        if work.by is By.NATIVE:
            if work.members:
                sizes = queues.options_of(work, seconds=plan.seconds, payload=plan.payload, patience_s=plan.patience_s)
                return queues.measure(work, mode, server, sizes)
            options = native.options_of(work, seconds=plan.seconds, payload=plan.payload, patience_s=plan.patience_s)
            return native.measure(work, mode, server, options)
        return clients.measure(
            name,
            work,
            server,
            seconds=plan.seconds,
            payload=plan.payload,
            connect=self._homes.connect,
            patience_s=plan.patience_s,
        )
