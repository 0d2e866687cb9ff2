"""Attacks that go on for a while, and what the honest pair feels of them.

    python -m tests.hostile.attacks [--seconds 5] [--rate 1000] [--loop uvloop] [NAME ...]

starts a server, lets the pair publish at the rate, runs one attack after the other and prints a row for each: what the
offender was told, the pair's latencies before and during the attack and their ratio, the server's processor time and
anonymous memory. Each attack is a process of its own at the lowest priority. Those whose point is not their volume are
paced, since on two cores an attacker that spins takes from everybody what no server can give back; a flood is as fast
as the server lets it be, which is what it tries out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hostile import attackers
from tests.hostile.attackers import (
    PUBLISH,
    REQUEST,
    SUBSCRIBED,
    UNSUBSCRIBE,
    Peer,
    channel,
    credit,
    frame,
    hello,
    packed,
    ping,
    publish,
    record,
    subscribe,
)
from tests.hostile.service import ROOT, Pair, Service, Window, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Address = tuple[str, int]
ATTACKS: dict[str, Attack] = {}
CUT_OFF = "(cut off)"
NOTHING = "(nothing)"
BLOCK_BYTES = 256 << 10
SOURCES = [f"127.0.0.{number}" for number in range(2, 10)]
SEED = 4770


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to be a nuisance.

    Attributes:
        name: for the command line.
        about: what it does, in a few words.
        told: the codes that its offenders may be told; `NOTHING` when what they do is no error, `CUT_OFF` when they
            read nothing and so cannot be told.
        run: does it for some seconds, and returns what it was told.
    """

    name: str
    about: str
    told: tuple[str, ...]
    run: Callable[[Address, float], str]


def attack(about: str, *told: str) -> Callable[[Callable[[Address, float], str]], Callable[[Address, float], str]]:
    """Register an attack under its function's name."""

    def register(run: Callable[[Address, float], str]) -> Callable[[Address, float], str]:
        name = run.__name__
        ATTACKS[name] = Attack(name, about, told, run)
        return run

    return register


def paced(seconds: float, rate: float) -> Iterator[int]:
    """Count at a rate until the time is over."""
    begun, number = time.monotonic(), 0
    while (now := time.monotonic()) < begun + seconds:
        due = begun + number / rate
        if due > now:
            time.sleep(due - now)
        yield number
        number += 1


def flood(
    peers: list[Peer],
    blocks: list[bytes],
    seconds: float,
    *,
    reads: bool = True,
    until: Callable[[], bool] = lambda: False,
) -> str:
    """Send each peer's block again and again, as fast as it is taken, until the time is over or `until` holds."""
    places = dict.fromkeys(peers, 0)
    for peer in peers:
        peer.socket.setblocking(False)
    end = time.monotonic() + seconds
    said = ""
    while places and time.monotonic() < end and not until():
        alive = [peer.socket for peer in places]
        readable, writable, _ = select.select(alive if reads else [], alive, [], 0.05)
        for peer, block in zip(peers, blocks, strict=True):
            if peer not in places:
                continue
            try:
                if peer.socket in readable and not peer.socket.recv(BLOCK_BYTES):
                    raise ConnectionResetError
                if peer.socket in writable:
                    places[peer] = (places[peer] + peer.socket.send(block[places[peer] :])) % len(block)
            except BlockingIOError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                del places[peer]
                said = CUT_OFF
    return said or NOTHING


def told_by(peer: Peer) -> str:
    """Read what there is on a connection that may have been ended; answers what it was told."""
    with suppress(TimeoutError):
        while peer.answer(0.3) is not None:
            continue
        return str(peer.errors[-1]["name"]) if peer.errors else CUT_OFF
    return NOTHING


def repeated(block: bytes) -> bytes:
    """Return a whole number of copies, about one read's worth."""
    return block * max(1, BLOCK_BYTES // len(block))


def opened(stack: ExitStack, address: Address, count: int = 1, first: bytes = b"") -> list[Peer]:
    """Return connections that have said HELLO, and something else."""
    peers = [stack.enter_context(Peer(address)) for _ in range(count)]
    for peer in peers:
        peer.open()
        peer.send(first)
    return peers


# --- Strangers -----------------------------------------------------------------------------------------------------


@attack("100 strangers a second with random bytes", "FRAME_TOO_LARGE")
def random_bytes(address: Address, seconds: float) -> str:
    rng = random.Random(SEED)
    said = ""
    for _ in paced(seconds, 100):
        with Peer(address) as peer:
            peer.send(rng.randbytes(64) + b"\xff" * 8)
            said = peer.ended() or said
    return said


@attack("200 connections a second that say HELLO and leave", NOTHING)
def come_and_go(address: Address, seconds: float) -> str:
    for _ in paced(seconds, 200):
        with Peer(address) as peer:
            peer.open()
    return NOTHING


@attack("50 HELLOs a second with a map of bombs", "MALFORMED_FRAME")
def bombs(address: Address, seconds: float) -> str:
    body = attackers.MAGIC + b"\x81\xa1k\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x90" * 1_000) * 16
    said = ""
    for _ in paced(seconds, 50):
        with Peer(address) as peer:
            peer.send(frame(attackers.HELLO, body[: 16 << 10]))
            said = peer.ended()
    return said


@attack("500 connections a second that declare 16 KiB, send half of it and dribble", "LIMIT", "TIMEOUT", NOTHING)
def dribble_before_hello(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        peers = []
        for number in paced(seconds / 2, 500):
            peers.append(stack.enter_context(Peer(address, SOURCES[number % 8])))
            peers[-1].send(frame(attackers.HELLO, bytes(8_000), size=16 << 10))
        return dribble(peers, seconds / 2)


@attack("200 connections a second that declare 1 MiB, send 300 KiB of it and dribble", "LIMIT", NOTHING)
def dribble_after_hello(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        peers = []
        for number in paced(seconds / 2, 200):
            peers.append(stack.enter_context(Peer(address, SOURCES[number % 8])))
            peers[-1].send(hello() + frame(PUBLISH, bytes(300 << 10), size=1 << 20))
        return dribble(peers, seconds / 2)


def dribble(peers: list[Peer], seconds: float) -> str:
    for number in paced(seconds, len(peers)):
        peers[number % len(peers)].send(b"x")
    # The first to begin is the first to go.
    return told_by(peers[0])


# --- Floods of frames ----------------------------------------------------------------------------------------------


@attack("a flood of PINGs", NOTHING)
def pings(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        return flood(opened(stack, address), [repeated(ping(1))], seconds)


@attack("a flood of PINGs from 50 connections", NOTHING)
def pings_of_many(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        return flood(opened(stack, address, 50), [repeated(ping(1))] * 50, seconds)


@attack("a flood of SUBSCRIBEs that are refused", NOTHING)
def refused_subscriptions(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        return flood(opened(stack, address), [repeated(subscribe(1, "a b"))], seconds)


@attack("a flood of SUBSCRIBEs that are refused, whose answers nobody reads", NOTHING, CUT_OFF)
def refused_subscriptions_unread(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        peers = opened(stack, address, 4)
        return flood(peers, [repeated(subscribe(1, "a b"))] * 4, seconds, reads=False)


@attack("a flood of publishes beyond the line", NOTHING)
def refused_publishes(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        peers = opened(stack, address, 1, channel(0, b"ephemeral.attack"))
        return flood(peers, [repeated(publish(0, 99, record()))], seconds)


@attack("a flood of publishes beyond the line, whose answers nobody reads", NOTHING, CUT_OFF)
def refused_publishes_unread(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        peers = opened(stack, address, 4, channel(0, b"ephemeral.attack"))
        return flood(peers, [repeated(publish(0, 99, record()))] * 4, seconds, reads=False)


@attack("a flood of questions for the counters", NOTHING)
def questions(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        return flood(opened(stack, address), [repeated(packed(REQUEST, request=1, op="stats"))], seconds)


@attack("a flood of credits of one byte", "MALFORMED_FRAME", NOTHING, CUT_OFF)
def credits(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        peers = opened(stack, address, 1, subscribe(1, "ephemeral.attack"))
        return flood(peers, [repeated(credit(1, 1))], seconds)


# --- Floods of what is kept ----------------------------------------------------------------------------------------


@attack("subscriptions of 1,000 patterns, made and dropped, 20 a second", NOTHING)
def patterns(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        (peer,) = opened(stack, address)
        for number in paced(seconds, 20):
            filters = [f"*.{number}.{at}.*.>" for at in range(1_000)]
            peer.send(subscribe(1, *filters) + packed(UNSUBSCRIBE, subscription=1))
            peer.until(SUBSCRIBED)
    return NOTHING


@attack("subscriptions of 1,000 new channels, 20 a second", NOTHING, "TOO_MANY_SUBSCRIPTIONS")
def channels(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        (peer,) = opened(stack, address)
        for number in paced(seconds, 20):
            peer.send(subscribe(number + 1, *[f"attack.{number}.{at}" for at in range(1_000)]))
            if number >= 32:
                return str(peer.until(attackers.ERROR).fields()["name"])
            peer.until(SUBSCRIBED)
    return NOTHING


@attack("100 producers a second, each with one message", NOTHING)
def producers(address: Address, seconds: float) -> str:
    rng = random.Random(SEED)
    for _ in paced(seconds, 100):
        with Peer(address) as peer:
            peer.open(producer=rng.randbytes(16))
            peer.send(channel(0, b"ephemeral.attack") + publish(0, 1, record()))
            peer.until(attackers.PUBLISHED)
    return NOTHING


@attack("a pattern that comes and goes beside 5,000 others", NOTHING)
def changing_pattern(address: Address, seconds: float) -> str:
    """Each change of a pattern has every channel look for its readers again."""
    with ExitStack() as stack:
        (peer,) = opened(stack, address)
        for number in range(50):
            peer.send(subscribe(number + 2, *[f"*.{number}-{at}.>" for at in range(100)]))
            peer.until(SUBSCRIBED)
        for _ in paced(seconds, 200):
            peer.send(subscribe(1, "*.nobody") + packed(UNSUBSCRIBE, subscription=1))
            peer.until(SUBSCRIBED)
    return NOTHING


# --- Readers -------------------------------------------------------------------------------------------------------


@attack("20 subscribers that read nothing of 5 MB a second", CUT_OFF, NOTHING)
def never_reads(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        readers = opened(stack, address, 20, subscribe(1, "ephemeral.>", credit=1 << 40))
        (publisher,) = opened(stack, address, 1, channel(0, b"ephemeral.attack"))
        payload = record(bytes(50_000))
        for number in paced(seconds, 100):
            publisher.send(publish(0, number + 1, payload))
            while publisher.readable(0):
                publisher.answer()
        readers[0].socket.settimeout(0.1)
        return NOTHING if readers[0].socket.send(b"") == 0 else CUT_OFF


@attack("100 starts by a time, a second", NOTHING)
def starts_by_time(address: Address, seconds: float) -> str:
    with ExitStack() as stack:
        (peer,) = opened(stack, address)
        for number in paced(seconds, 100):
            peer.send(subscribe(number + 1, "stored.>", start={"time_us": number}, credit=1))
            peer.until(SUBSCRIBED)
    return NOTHING


# --- The command ---------------------------------------------------------------------------------------------------


def start(name: str, address: Address, seconds: float) -> subprocess.Popen[str]:
    """Start an attack in a process of its own, at the lowest priority."""
    command = [sys.executable, "-m", "tests.hostile.attacks", "--run", address[0], str(address[1]), str(seconds), name]
    return subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> str:
    """Wait for an attack; answers what it was told."""
    said, _ = process.communicate(timeout=120)
    if process.returncode:
        raise AssertionError(f"the attack ended with status {process.returncode}: {said}")
    return str(json.loads(said))


def table(names: list[str], seconds: float, rate: int, loop: str) -> None:
    """Run attacks against a server of their own, and print what became of each."""
    heading = ("attack", "told", "p50", "p99", "p50", "p99", "x p50", "x p99", "max", "stored", "cpu", "RSS")
    widths = (29, 23, 7, 7, 7, 7, 6, 6, 8, 8, 5, 8)
    print(f"pair: {rate} messages/s; microseconds, of the ephemeral channel: alone, then under attack; {loop}")
    print(" ".join(f"{title:>{width}}" for title, width in zip(heading, widths, strict=True)))
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder), loop=loop) as service:
        pair = Pair(service.address, rate)
        try:
            for name in names:
                pair.window()
                time.sleep(seconds)
                alone = pair.window()
                process, cpu_s, begun_s = start(name, service.address, seconds), service.cpu_s(), time.monotonic()
                said = outcome(process)
                under = pair.window()
                cpu = (service.cpu_s() - cpu_s) / (time.monotonic() - begun_s)
                row = (name, said, *figures(alone, under), f"{cpu:.0%}", f"{service.anonymous_bytes() >> 20} MiB")
                print(" ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)), flush=True)
                for wrong in (*alone.wrong, *under.wrong):
                    print(f"    {wrong}")
        finally:
            pair.stop()


def figures(alone: Window, under: Window) -> list[str]:
    """Return a row's latencies."""
    p50, p99 = under.p50_us / alone.p50_us, under.p99_us / alone.p99_us
    times = [alone.p50_us, alone.p99_us, under.p50_us, under.p99_us]
    row = [f"{time_us:.0f}" for time_us in times]
    return [*row, f"{p50:.2f}", f"{p99:.2f}", f"{under.max_us:.0f}", f"{under.stored_p99_us / alone.stored_p99_us:.2f}"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack, and of the pair alone before it")
    parser.add_argument("--rate", type=int, default=1_000, help="messages a second of the pair")
    parser.add_argument("--loop", default="auto", help="kind of the server's event loop")
    parser.add_argument("--run", nargs=3, metavar=("HOST", "PORT", "SECONDS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    unknown = set(asked.names) - set(ATTACKS)
    if unknown:
        parser.error(f"no attack is called {', '.join(sorted(unknown))}")
    if asked.run:
        os.nice(19)
        host, port, seconds = asked.run
        print(json.dumps(ATTACKS[asked.names[0]].run((host, int(port)), float(seconds))))
    else:
        table(asked.names or list(ATTACKS), asked.seconds, asked.rate, asked.loop)


if __name__ == "__main__":
    main()
