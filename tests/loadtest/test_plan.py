"""What a load test is asked to do, and what is wrong with it before anything is started."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from loadtest.__main__ import command_of, main
from loadtest.address import complaint_of
from loadtest.cadence import ROOM_MEMBERS_MAX, ROOM_MEMBERS_MIN, WEIGHTS, members, offered
from loadtest.plan import SCENARIOS, SHAPES, Plan, options, unreachable
from loadtest.ports import places_of, taken
from loadtest.stages import users_at

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_the_plan_that_nobody_changed_is_good() -> None:
    plan = Plan()
    assert plan.complaints() == []
    assert unreachable(plan, 600, offered(plan, 600)) is None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"scenario": "opera"}, "--scenario: got 'opera', expected one of mixed"),
        ({"shape": "round"}, "--shape: got 'round', expected one of steady"),
        ({"stored_prefix": "a..b"}, "--stored-prefix: got 'a..b'"),
        ({"stored_prefix": "load.e"}, "--ephemeral-prefix: it is --stored-prefix"),
        ({"payload": 23}, "--payload: got 23 bytes, from 24"),
        ({"pace": 0.0}, "--pace: got 0, expected more than 0"),
        ({"patience": -1.0}, "--patience: got -1"),
        ({"min_rate": -1.0}, "--min-rate: got -1 messages/s"),
        ({"min_rate": float("nan")}, "--min-rate: got nan"),
        ({"max_p99_ms": 0.0}, "--max-p99-ms: got 0 ms: no message takes less than no time"),
        ({"max_lost": -1}, "--max-lost: got -1"),
        ({"max_errors": -2}, "--max-errors: got -2"),
    ],
)
def test_what_cannot_be_is_told(changed: dict[str, Any], told: str) -> None:
    [complaint] = Plan(**changed).complaints()
    assert complaint.startswith(told)


def test_all_that_is_wrong_is_told_at_once() -> None:
    result = CliRunner().invoke(main, ["--payload", "3", "--max-lost", "-1", "--users", "0"])
    assert result.exit_code == 2
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == [" --payload", " --max-lost", " --users"]


def test_more_than_is_offered_is_told_before_anything_starts() -> None:
    begun = time.monotonic()
    result = CliRunner().invoke(main, ["--users", "10", "--scenario", "fanout"])
    assert result.exit_code == 2
    assert (
        "--min-rate: 100,000 messages/s cannot be reached: 10 users of fanout at pace 1 are due 20,571" in result.stderr
    )
    assert time.monotonic() - begun < 5


def test_help_teaches() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(option.flag in result.output for option in options())
    assert "durability = " in result.output


def test_locust_is_told_all_of_the_plan() -> None:
    plan = Plan(scenario="chat", max_p99_ms=7.5, report="r.html")
    command = command_of(plan, "broker://x:1", 9, 3.4, 2, "l.html")
    assert {"--scenario=chat", "--max-p99-ms=7.5", "--report=r.html", "--processes", "--html"} <= set(command)
    assert command[command.index("--run-time") + 1] == "3s"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_more_users_are_due_more(scenario: str) -> None:
    plan = Plan(scenario=scenario)
    due = [offered(plan, users) for users in (1, 60, 600, 1200)]
    assert due == sorted(due)
    assert due[-1] > due[1] > 0
    assert offered(Plan(scenario=scenario, pace=2.0), 600) == pytest.approx(2 * due[2])


def test_the_rooms_are_of_the_sizes_that_were_promised() -> None:
    counts = members(ROOM_MEMBERS_MAX)
    assert (max(counts), min(counts)) == (ROOM_MEMBERS_MAX, ROOM_MEMBERS_MIN)
    # By Zipf's law the second is half as large as the first, the tenth a tenth.
    assert (counts[1], counts[9]) == (ROOM_MEMBERS_MAX // 2, ROOM_MEMBERS_MAX // 10)
    assert sum(WEIGHTS.values()) == 60


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_reach_what_was_asked_for_and_end(shape: str) -> None:
    counts = [users_at(shape, at, 100, 60.0) for at in range(60)]
    assert max(count or 0 for count in counts) == 100
    assert min(count or 0 for count in counts) >= 1
    assert users_at(shape, 60.0, 100, 60.0) is None
    assert users_at(shape, 1e6, 100, None) is not None


def test_shapes_are_what_they_are_called() -> None:
    def counts(shape: str) -> list[int | None]:
        return [users_at(shape, at, 100, 60.0) for at in (0, 10, 30, 50)]

    assert counts("steady") == [100, 100, 100, 100]
    assert counts("ramp") == [10, 20, 60, 90]
    assert counts("spike") == [25, 25, 100, 25]
    assert counts("soak") == [10, 100, 100, 100]


@contextmanager
def answering(said: bytes) -> Iterator[str]:
    """Listen, and answer whoever connects with these bytes, or with silence."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with listening.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(said)
                connection.settimeout(5)
                connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"broker://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            thread.join()


@pytest.mark.parametrize(
    "said",
    [b"-ERR unknown command\r\n", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b""],
    ids=["redis", "http", "nothing"],
)
def test_what_is_no_broker_is_told(said: bytes) -> None:
    with answering(said) as url:
        complaint = complaint_of(url, Plan(patience=0.3))
    assert complaint is not None
    assert complaint.startswith(f"{url}: no broker answers there: ")


def test_an_address_where_nobody_listens_ends_with_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = CliRunner().invoke(main, ["--url", f"broker://127.0.0.1:{port}", "--min-rate", "0"])
    assert result.exit_code == 1
    assert f"broker://127.0.0.1:{port}: no broker answers there" in result.stderr
    assert "refused" in result.stderr


def test_an_address_of_another_kind_is_told() -> None:
    complaint = complaint_of("http://127.0.0.1:80", Plan())
    assert complaint is not None
    assert "expected broker://host:port" in complaint


MASTER, WEB = "the master", "the web interface"


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (["-f", "x.py", "--headless"], []),
        (["-f", "x.py"], [(WEB, "*", 8089)]),
        (["--worker", "--processes", "2"], []),
        (["--master", "--headless"], [(MASTER, "*", 5557)]),
        (["-u", "3", "--processes", "-1", "--master-bind-port=77", "-P", "78"], [(MASTER, "*", 77), (WEB, "*", 78)]),
        (["--processes=2", "--headless", "--master-bind-host", "127.0.0.1"], [(MASTER, "127.0.0.1", 5557)]),
    ],
)
def test_it_is_known_where_locust_will_listen(arguments: list[str], places: list[tuple[str, str, int]]) -> None:
    assert [place[:3] for place in places_of(arguments)] == places


def test_a_port_that_is_taken_is_told_before_there_are_workers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        [place] = places_of(["--master", "--headless", "--master-bind-host=127.0.0.1", f"--master-bind-port={port}"])
        complaint = taken(place)
    assert complaint == (
        f"127.0.0.1:{port}: the master cannot listen there: Address already in use; choose another --master-bind-port"
    )
    assert taken(place) is None
