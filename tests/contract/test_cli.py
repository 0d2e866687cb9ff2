"""`broker pub` and `broker sub` as programs, in pipes, against a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from broker.cli import ExitCode
from tests.contract.homes import ROOT, Server

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT = ("--timeout", "10")


class Program:
    """The command line against one server."""

    def __init__(self, server: Server) -> None:
        self.url = server.unix_url
        self._environment = {**Server.environment(), "BROKER_URL": server.unix_url}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "broker", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, env=self._environment)

    def run(self, *arguments: str, given: bytes = b"", status: int = 0) -> bytes:
        """Run to the end; return what it printed."""
        with self.start(*arguments) as process:
            printed, complaints = process.communicate(given, timeout=30)
        assert process.returncode == status, complaints.decode()
        assert b"Traceback" not in complaints
        return printed if status == 0 else complaints

    def run_telling(self, *arguments: str) -> bytes:
        """Run to a good end; return what it told on stderr."""
        with self.start(*arguments) as process:
            _, told = process.communicate(timeout=30)
        assert process.returncode == 0, told.decode()
        return told

    def complete(self, asked: dict[str, str]) -> str:
        """Return what completes the words that a shell tells in the environment."""
        code = "from broker.cli.main import command; command(prog_name='broker')"
        environment = {**self._environment, **asked}
        return subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, timeout=30)


@pytest.fixture
def program(shared_server: Server) -> Program:
    return Program(shared_server)


def test_text_and_lines_come_out_as_lines(program: Program, room: str) -> None:
    channel = f"s.{room}"
    assert program.run("pub", channel, "héllo") == b""
    program.run("pub", channel, given=b"one\r\ntwo\n\nlast")
    printed = program.run("sub", channel, "--start", "start", "--count", "5", *TIMEOUT)
    assert printed == "héllo\none\ntwo\n\nlast\n".encode()
    printed = program.run("sub", f"s.{room}", f"s.{room}.>", "--start", "last:1", "--count", "1", *TIMEOUT, status=5)
    assert b"INVALID_POSITION" in printed
    printed = program.run("sub", channel, "--start", "last:2", "--count", "2", *TIMEOUT)
    assert printed == b"\nlast\n"
    printed = program.run("sub", "s.>", "--start", "since:2020-01-01", "--count", "1", *TIMEOUT)
    assert printed.startswith(b"s.")


def test_json_lines_say_everything(program: Program, room: str) -> None:
    channel = f"s.{room}"
    options = ("--key", "k1", "--header", "a=1", "--header", "b=x=y", "--priority", "0", "--expiry-s", "60")
    program.run("pub", channel, "text", *options)
    program.run("pub", channel, "--as", "whole", given=b"\xff\0")
    first, second = map(
        json.loads, program.run("sub", channel, "--json", "--start", "start", "--count", "2", *TIMEOUT).splitlines()
    )
    assert {key: first[key] for key in ("channel", "sequence", "payload", "key", "headers")} == {
        "channel": channel,
        "sequence": 1,
        "payload": "text",
        "key": "k1",
        "headers": {"a": "1", "b": "x=y"},
    }
    assert second["payload_base64"] == "/wA="
    place = f"{first['epoch']}:{first['sequence']}"
    assert program.run("sub", channel, "--raw", "--start", place, "--count", "1", *TIMEOUT) == b"\xff\0"


def test_framed_bytes_go_through_two_programs(program: Program, room: str, tmp_path: Path) -> None:
    payloads = [os.urandom(size) for size in (0, 1, 100_000, 3)]
    framed = b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)
    path = tmp_path / "framed"
    path.write_bytes(framed)
    program.run("pub", f"s.{room}.a", "--as", "framed", "--file", str(path))
    copied = program.run("sub", f"s.{room}.a", "--framed", "--start", "start", "--count", "4", *TIMEOUT)
    assert copied == framed
    program.run("pub", f"s.{room}.b", "--as", "framed", given=copied)
    assert program.run("sub", f"s.{room}.b", "--framed", "--start", "start", "--count", "4", *TIMEOUT) == framed
    complaint = program.run("pub", f"s.{room}.b", "--as", "framed", given=b"\5\0\0\0abc", status=ExitCode.STOP)
    assert b"ends 7 bytes into a message" in complaint


def test_lines_of_a_pipe_are_published_as_they_come(program: Program, room: str) -> None:
    channel = f"s.{room}"
    with program.start("pub", channel) as publisher, program.start("sub", channel, "--start", "start") as reader:
        assert publisher.stdin is not None
        assert reader.stdout is not None
        for number in range(3):
            publisher.stdin.write(b"%d\n" % number)
            publisher.stdin.flush()
            assert reader.stdout.readline() == b"%d\n" % number
        publisher.stdin.close()
        assert publisher.wait(10) == 0
        reader.terminate()


def replying(program: Program, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `broker reply`, and wait until it listens."""
    responder = program.start("reply", *arguments)
    assert responder.stderr is not None
    assert responder.stderr.readline() == b"ready\n"
    return responder


def test_requests_are_replied_to(program: Program, room: str) -> None:
    channel = f"e.{room}"
    complaint = program.run("request", channel, "hello?", status=ExitCode.RETRY)
    assert b"NO_RESPONDERS" in complaint
    with replying(program, channel, "--text", "pong", "--count", "1") as responder:
        assert program.run("request", channel, "ping") == b"pong\n"
        assert responder.wait(10) == 0
    with replying(program, channel, "--count", "2") as responder:
        assert program.run("request", channel, "--raw", given=b"\xff\0") == b"\xff\0"
        program.run("pub", channel, "this asks nothing")
        assert json.loads(program.run("request", channel, "x", "--json"))["payload"] == "x"
        assert responder.wait(10) == 0
    with replying(program, f"{channel}.*", "--command", "tr a-z A-Z", "--count", "1") as responder:
        assert program.run("request", f"{channel}.shout", "hello", "--header", "a=1") == b"HELLO\n"
        assert responder.wait(10) == 0
    complaint = program.run("reply", channel, "--command", "  ", status=ExitCode.STOP)
    assert b"got no words" in complaint
    assert b"two answers" in program.run("reply", channel, "--command", "x", "--text", "y", status=2)


def test_a_request_that_nobody_answers_ends_in_time(program: Program, room: str) -> None:
    channel = f"s.{room}"
    complaint = program.run("request", channel, "hello?", "--timeout", "0.2", status=ExitCode.RETRY)
    assert b"TIMEOUT" in complaint


def test_members_of_a_group_share_what_comes(program: Program, room: str) -> None:
    channel = f"e.{room}"
    with (
        replying(program, channel, "--group", "g", "--count", "2") as one,
        replying(program, channel, "--group", "g", "--count", "2") as other,
    ):
        for number in range(4):
            assert program.run("request", channel, f"{number}") == b"%d\n" % number
        assert (one.wait(10), other.wait(10)) == (0, 0)
    complaint = program.run("sub", channel, "--group", "g", "--start", "start", status=ExitCode.STOP)
    assert b"INVALID_POSITION" in complaint


def test_a_reader_that_leaves_is_no_error_of_anybody(program: Program, room: str) -> None:
    channel = f"s.{room}"
    with program.start("sub", channel, "--start", "start") as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        reader.stdout.close()
        program.run("pub", channel, given=b"line\n" * 100_000)
        assert reader.wait(10) == ExitCode.BROKEN_PIPE
        assert reader.stderr.read() == b""


def test_exit_codes_mean_something(program: Program, room: str) -> None:
    channel = f"s.{room}"
    quickly = ("--timeout", "0.05")
    assert b"INVALID_CHANNEL" in program.run("pub", "a..b", "x", status=ExitCode.STOP)
    assert b"NO_PROFILE" in program.run("pub", f"none.{room}", given=b"x\n", status=ExitCode.STOP)
    assert b"expected new" in program.run("sub", channel, "--start", "yesterday", status=ExitCode.USAGE)
    assert b"TIMEOUT" in program.run("sub", channel, "--count", "1", *quickly, status=ExitCode.RETRY)
    assert program.run("sub", channel, *quickly) == b""
    nobody = ("--url", "broker+unix:///nowhere/socket")
    assert b"is the broker running?" in program.run("pub", channel, "x", *nobody, status=ExitCode.RESUME)
    assert b"ADDRESS" in program.run("pub", channel, "x", "--url", "http://x", status=ExitCode.STOP)


def test_history_prints_stretches(program: Program, room: str) -> None:
    channel = f"s.{room}"
    program.run("pub", channel, given=b"one\ntwo\nthree\nfour\n")
    assert program.run("history", channel) == b"one\ntwo\nthree\nfour\n"
    assert program.run("history", channel, "--last", "2") == b"three\nfour\n"
    assert program.run("history", channel, "--reverse", "--limit", "3") == b"four\nthree\ntwo\n"
    assert program.run("history", channel, "--since", "1", "--until", "3", "--raw") == b"twothree"
    assert program.run("history", channel, "--since", "2020-01-01", "--until", "1d") == b""
    assert program.run("history", channel, "--since", "1h").count(b"\n") == 4
    rows = [json.loads(line) for line in program.run("history", channel, "--json", "--last", "1").splitlines()]
    assert [(row["channel"], row["sequence"], row["payload"]) for row in rows] == [(channel, 4, "four")]
    place = f"{rows[0]['epoch']}:3"
    assert program.run("history", channel, "--since", place) == b"four\n"
    assert (
        program.run("history", "*." + room)
        == "".join(f"{channel}\t{each}\n" for each in ("one", "two", "three", "four")).encode()
    )
    assert b"expected SEQUENCE" in program.run("history", channel, "--since", "yesterday", status=ExitCode.USAGE)
    assert b"two beginnings" in program.run("history", channel, "--since", "1", "--last", "1", status=ExitCode.USAGE)
    assert b"INVALID_POSITION" in program.run("history", "s.>", "--last", "1", status=ExitCode.STOP)
    assert b"NO_PROFILE" in program.run("history", f"none.{room}", status=ExitCode.STOP)


def test_channels_are_listed_described_trimmed_and_removed(program: Program, room: str) -> None:
    names = [f"s.{room}.{each}" for each in "abc"]
    for name in names:
        program.run("pub", name, given=b"one\ntwo\nthree\n")
    assert program.run("channel", "ls", f"s.{room}.").decode().split() == names
    assert program.run("channel", "ls", f"s.{room}.", "--after", names[0], "--limit", "1").decode().split() == [
        names[1]
    ]
    (line,) = program.run("channel", "ls", names[2], "--long").decode().splitlines()
    assert line.split("\t")[:4] == [names[2], "1", "3", "synced"]
    (row,) = map(json.loads, program.run("channel", "ls", names[2], "--long", "--json").splitlines())
    assert (row["name"], row["first"], row["head"], row["durability"]) == (names[2], 1, 3, "synced")
    assert program.run("channel", "trim", names[0], "--before", "3") == f"{names[0]}: begins with 3\n".encode()
    described = json.loads(program.run("channel", "info", names[0], "--json"))
    assert (described["first"], described["head"], described["messages"]) == (3, 3, 1)
    assert b"sequences 3 to 3" in program.run("channel", "info", names[0])
    assert b"no message" in program.run("channel", "info", f"s.{room}.none")
    assert b"INVALID_POSITION" in program.run("channel", "trim", names[0], "--before", "9", status=ExitCode.STOP)
    assert b"--yes" in program.run("channel", "rm", names[1], status=ExitCode.STOP)
    assert program.run("channel", "rm", names[1], "--yes") == b""
    assert program.run("channel", "ls", f"s.{room}.").decode().split() == [names[0], names[2]]
    assert b"DENIED" in program.run("channel", "ls", "$", status=ExitCode.STOP)


def test_names_complete(program: Program, room: str) -> None:
    """As a shell asks for it; and a broker that is not there completes nothing."""
    program.run("pub", f"s.{room}.one", "x")
    program.run("pub", f"s.{room}.two", "x")
    asked = {"_BROKER_COMPLETE": "bash_complete", "COMP_WORDS": f"broker history s.{room}.", "COMP_CWORD": "2"}
    assert program.complete(asked).split() == [f"plain,s.{room}.one", f"plain,s.{room}.two"]
    assert not program.complete({**asked, "BROKER_URL": "broker+unix:///nowhere/socket"}).split()


def test_consumers_are_made_read_and_set_back(program: Program, room: str) -> None:
    channel, name = f"s.{room}", f"c.{room}"
    program.run("pub", channel, given=b"one\ntwo\nthree\n")
    made = program.run("consumer", "create", name, channel)
    assert f"{name}: consumer, one holder at a time".encode() in made
    assert program.run("consumer", "next", name) == f"{channel}\tone\n".encode()
    assert program.run("consumer", "next", name, "--no-ack", "--raw") == b"two"
    rows = program.run("consumer", "next", name, "--count", "5", "--timeout", "0.5", "--json").splitlines()
    (second, third) = map(json.loads, rows)
    assert (second["payload"], second["sequence"], second["redelivered"]) == ("two", 2, True)
    assert (third["payload"], third["redelivered"]) == ("three", False)
    assert b"TIMEOUT" in program.run("consumer", "next", name, "--timeout", "0.1", status=ExitCode.RETRY)
    found = json.loads(program.run("consumer", "info", name, "--json"))
    assert (found["mode"], found["acked"], found["ready"], found["filters"]) == ("exclusive", 3, 0, [channel])
    assert b"3 done" in program.run("consumer", "info", name)
    assert b"nobody is there to be asked" in program.run("consumer", "reset", name, "start", status=ExitCode.STOP)
    program.run("consumer", "reset", name, "start", "--yes")
    assert program.run("consumer", "next", name, "--raw") == b"one"
    program.run("consumer", "pause", name)
    (line,) = program.run("consumer", "ls", name).decode().splitlines()
    assert line.split("\t")[:2] == [name, "paused"]
    assert b"TIMEOUT" in program.run("consumer", "next", name, "--timeout", "0.1", status=ExitCode.RETRY)
    program.run("consumer", "resume", name)
    assert program.run("consumer", "next", name, "--raw") == b"two"
    asked = {"_BROKER_COMPLETE": "bash_complete", "COMP_WORDS": f"broker consumer info c.{room}", "COMP_CWORD": "3"}
    assert program.complete(asked).split() == [f"plain,{name}"]
    program.run("consumer", "rm", name, "--yes")
    assert b"UNKNOWN_CONSUMER" in program.run("consumer", "info", name, status=ExitCode.STOP)
    assert b"INVALID_CONSUMER" in program.run("consumer", "info", "a..b", status=ExitCode.STOP)


def test_queues_are_looked_into_and_worked_off(program: Program, room: str, tmp_path: Path) -> None:
    channel, name, dead = f"s.{room}", f"q.{room}", f"s.dead-{room}"
    settings = ("--dead-letter", dead, "--backoff", "0.05", "0.1", "--attempts", "3", "--lanes")
    made = program.run("queue", "create", name, channel, *settings)
    assert b"work queue" in made
    assert b"by priority" in made
    program.run("pub", channel, given=b"good\nbad\nflaky\n")
    program.run("consumer", "next", name, "--no-ack")
    rows = [line.split("\t") for line in program.run("queue", "peek", name).decode().splitlines()]
    assert sorted(row[4] for row in rows) == ["bad", "flaky", "good"]
    assert {row[3] for row in rows} == {"ready"}
    (row, *_) = map(json.loads, program.run("queue", "peek", name, "--json", "--limit", "1").splitlines())
    assert (row["channel"], row["state"]) == (channel, "ready")
    script = (
        f'read line; echo "$line $BROKER_ATTEMPT" >> {tmp_path}/seen; '
        'case "$line" in bad) exit 5;; flaky) [ "$BROKER_ATTEMPT" -ge 2 ] || exit 1;; esac'
    )
    with program.start("queue", "work", name, "--exec", script, "--concurrency", "2") as worker:
        deadline = time.monotonic() + 20
        while json.loads(program.run("queue", "info", name, "--json"))["acked"] < 2:
            assert time.monotonic() < deadline
        worker.terminate()
        assert worker.wait(20) == 0
    seen = (tmp_path / "seen").read_text().split("\n")
    assert any(line.startswith("good ") for line in seen)
    assert any(line.startswith("flaky 2") or line.startswith("flaky 3") for line in seen)
    found = json.loads(program.run("queue", "info", name, "--json"))
    assert (found["mode"], found["dead"], found["leased"], found["members"]) == ("shared", 1, 0, 0)
    assert f"{name}: 1 dead letters".encode() in program.run("queue", "redrive", name)
    assert b"jobs are done" in program.run("queue", "purge", name, "--yes")
    assert program.run("queue", "peek", name) == b""
    assert program.run("queue", "ls", name).decode().split("\t")[0] == name
    assert b"--yes" in program.run("queue", "purge", name, status=ExitCode.STOP)
    assert b"UNKNOWN_CONSUMER" in program.run("queue", "work", "q.none", "--exec", "true", status=ExitCode.STOP)


def test_messages_for_later_are_scheduled_listed_and_cancelled(program: Program, room: str) -> None:
    channel = f"s.{room}"
    assert program.run("pub", channel, "never", "--delay", "3000", "--id", "a b") == b"a b\n"
    drawn = program.run("pub", channel, "soon", "--at", "2020-01-01T00:00:00+00:00").strip()
    assert len(drawn) > 16
    printed = program.run("sub", channel, "--start", "start", "--count", "1", *TIMEOUT)
    assert printed == b"soon\n"
    [line] = program.run("delayed", "ls", channel).decode().splitlines()
    assert line.split("\t")[1:3] == [channel, "hex:" + b"a b".hex()]
    [listed] = program.run("delayed", "ls", channel, "--json").splitlines()
    assert json.loads(listed)["id"] == "hex:" + b"a b".hex()
    program.run("delayed", "cancel", channel, "hex:" + b"a b".hex())
    assert program.run("delayed", "ls", channel) == b""
    assert b"UNKNOWN_MESSAGE" in program.run("delayed", "cancel", channel, "a b", status=5)
    for wrong in (("--delay", "1", "--at", "2020-01-01"), ("--at", "tomorrow"), ("--delay", "1", "--receipt")):
        program.run("pub", channel, "x", *wrong, status=2)


def test_a_message_with_an_id_is_stored_once(program: Program, room: str) -> None:
    channel = f"s.{room}"
    place = program.run("pub", channel, "paid", "--id", "order-42", "--receipt")
    again = program.run_telling("pub", channel, "paid", "--id", "order-42")
    assert again == b"%b: stored before, at %b" % (channel.encode(), place)
    program.run("pub", channel, "paid", "--id", "order-43")
    assert program.run("history", channel).count(b"paid") == 2
    assert b"one message" in program.run("pub", channel, "--id", "x", given=b"a\nb\n", status=2)


def test_a_message_is_stored_only_behind_the_one_that_it_expects(program: Program, room: str) -> None:
    channel = f"s.{room}"
    place = program.run("pub", channel, "first", "--expect", "none", "--receipt").decode().strip()
    assert b"CONFLICT" in program.run("pub", channel, "late", "--expect", "none", status=ExitCode.STOP)
    second = program.run("pub", channel, "second", "--expect", place, "--receipt").decode().strip()
    assert second == f"{place.partition(':')[0]}:2"
    complaint = program.run("pub", channel, "late", "--expect", place, status=ExitCode.STOP)
    assert second.encode() in complaint
    assert b"EPOCH:SEQUENCE or none" in program.run("pub", channel, "x", "--expect", "soon", status=2)
