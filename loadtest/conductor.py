"""Conducts a test through Locust's events: begins it, gathers what processes count, closes it, and has it judged.

Locust runs alone, or as a master with workers; the users are where there is no master, the judge is where there is no
worker. The end is in three steps, and `test_stopping` waits for them, since Locust ends the users behind it:

1. every process lets its publishers end, and says how much was published to each channel;
2. the judge adds that up and tells all; readers read until they have what they are due, or nothing comes any more;
3. every process says what was lost, duplicated, and so on, and the judge decides.

A worker whose master falls silent ends by itself; so does a test whose server or one of whose workers falls silent.
`environment.process_exit_code` is what Locust ends with.
"""

from __future__ import annotations

import logging
import secrets
import signal
import time
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import AsyncResult
from locust import events
from locust.exception import StopUser
from locust.runners import STATE_MISSING, LocalRunner, MasterRunner, WorkerRunner

from loadtest.address import complaint_of
from loadtest.cadence import offered
from loadtest.judge import Judge
from loadtest.ledger import sum_published
from loadtest.plan import USERS_DEFAULT, Plan, options, unreachable
from loadtest.server import Watch
from loadtest.side import Seats, Side

if TYPE_CHECKING:
    from locust import User
    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment
    from locust.rpc.protocol import Message
    from locust.runners import Runner

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

SPAWN_RATE: Final = 300.0
CLOSE, PUBLISHED, DUE, FINAL = "loadtest_close", "loadtest_published", "loadtest_due", "loadtest_final"
SEAT, SEATED = "loadtest_seat", "loadtest_seated"
SEAT_TIMEOUT_S: Final = 30.0
TEST_OPTION: Final = "loadtest_test"
"""What tells this test's channels from those of any other; the master chooses it, and Locust carries it to workers."""
STEP_S: Final = 0.1
ABORTED_PATIENCE_S: Final = 0.5
CLOSING_S_MAX: Final = 300.0
"""How long workers may read what is left: a backlog comes at the broker's speed."""

log = logging.getLogger("locust.loadtest")


class RemoteSeats:
    """The master's `Seats`, asked by a worker's users; each waits for its own answer."""

    def __init__(self, runner: WorkerRunner, waiting: dict[int, AsyncResult[int]]) -> None:
        self._runner = runner
        self._waiting = waiting
        self._tickets = count()

    def take(self, kind: str) -> int:
        """Return a number for a new user.

        Raises:
            StopUser: The master does not answer, or has none left.
        """
        ticket = next(self._tickets)
        answer = self._waiting[ticket] = AsyncResult()
        self._runner.send_message(SEAT, {"kind": kind, "ticket": ticket})
        try:
            number: int = answer.get(timeout=SEAT_TIMEOUT_S)
        except gevent.Timeout as late:
            raise StopUser from late
        finally:
            del self._waiting[ticket]
        return number

    def leave(self, kind: str, number: int) -> None:
        """Give a number back."""
        self._runner.send_message(SEAT, {"kind": kind, "number": number})


class Conductor:
    """One process' part in tests, one after the other.

    Args:
        environment: Locust's.
        plan: what is asked.
    """

    def __init__(self, environment: Environment, plan: Plan) -> None:
        self.environment = environment
        self.plan = plan
        self.side: Side | None = None
        self.judge: Judge | None = None
        self._watch: Watch | None = None
        self._answers: dict[str, dict[str, Any]] = {}
        self._expected: set[str] = set()
        self._seats = Seats()
        self._is_closing = False
        self._waiting: dict[int, AsyncResult[int]] = {}

    @property
    def runner(self) -> Runner:
        """Locust's runner."""
        assert self.environment.runner is not None
        return self.environment.runner

    # -- beginning ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A test starts: on the judge first, then on each worker as its first users are asked for."""
        parsed = self.environment.parsed_options
        assert parsed is not None
        runner = self.runner
        if not isinstance(runner, WorkerRunner):
            setattr(parsed, TEST_OPTION, secrets.token_hex(4))
            self._is_closing = False
            self.judge = Judge(self.plan, self.url, self.users())
            self._watch = Watch(self.url, self.plan, self.judge.server, self._server_is_gone)
            self._watch.start()
            gevent.spawn(self._look_after)
        self._expected = set()
        if isinstance(runner, MasterRunner):
            self._expected = set(runner.clients)
            self._seats = Seats()
            return
        test = str(getattr(parsed, TEST_OPTION))
        self.plan = Plan.of(parsed)
        usher = RemoteSeats(runner, self._waiting) if isinstance(runner, WorkerRunner) else Seats()
        self.side = Side(self.plan, self.url, test, usher)

    @property
    def url(self) -> str:
        """Where the broker is."""
        return self.environment.host or ""

    def users(self) -> int:
        """Return the most users that there will be at once."""
        parsed = self.environment.parsed_options
        return int(getattr(parsed, "num_users", None) or 1)

    def complete(self, users: int) -> None:
        """So many users are there, as many as were asked for at the moment."""
        if self.judge is not None:
            self.judge.crowd_is_complete(users)

    # -- what comes meanwhile -----------------------------------------------------------------------------------------

    def worker_reports(self, client_id: str, data: dict[str, Any]) -> None:
        """Take what a worker has counted."""
        report = data.get("loadtest")
        if self.judge is not None and report is not None:
            self.judge.take(client_id, report)

    def report_to_master(self, data: dict[str, Any]) -> None:
        """Add what was counted here to what Locust sends."""
        if self.side is not None:
            data["loadtest"] = self.side.report()

    def _look_after(self) -> None:
        """Look at what nobody tells: workers that are gone, and seconds that are over."""
        judge = self.judge
        while judge is not None and judge is self.judge and not judge.closed:
            if isinstance(self.runner, LocalRunner) and self.side is not None:
                judge.take("local", self.side.report())
            if isinstance(self.runner, MasterRunner):
                self._look_for_workers(self.runner, judge)
            judge.tick(self.runner.user_count)
            gevent.sleep(1.0)

    def _look_for_workers(self, runner: MasterRunner, judge: Judge) -> None:
        there = {client_id for client_id in runner.clients if runner.clients[client_id].state != STATE_MISSING}
        missing = self._expected - there
        if missing and not judge.closing:
            self._end(f"{len(missing)} of {len(self._expected)} workers are gone: {', '.join(sorted(missing))}")

    def _server_is_gone(self, why: str) -> None:
        self._end(f"the server at {self.url} has not answered for {self.plan.patience:g} s: {why}")

    def _end(self, why: str) -> None:
        """End the test at once, as failed."""
        if self.judge is None or self.judge.closing:
            return
        self.judge.fail(why)
        self.judge.closing = True
        log.error("load test: %s", why)
        self.environment.process_exit_code = EXIT_FAILED
        gevent.spawn(self.runner.quit)

    def _give_up(self, why: str) -> None:
        """End a worker that nobody conducts."""
        log.error("load test: %s", why)
        self.environment.process_exit_code = EXIT_FAILED
        gevent.spawn(self.runner.quit)

    def watch_master(self) -> None:
        """End this worker when its master says nothing any more."""
        runner = self.runner
        assert isinstance(runner, WorkerRunner)
        begun_s = time.time()
        while time.time() - max(begun_s, runner.last_heartbeat_timestamp or 0.0) <= self.plan.patience:
            gevent.sleep(min(1.0, self.plan.patience / 4))
        where = f"{runner.master_host}:{runner.master_port}"
        self._give_up(f"the master at {where} has not been heard of for {self.plan.patience:g} s: ending")

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The test is stopping, and the users are still there: bring it to its end, and wait for that."""
        judge = self.judge
        if judge is None:
            return
        if self._is_closing:
            # Asked twice, as by an impatient Ctrl-C: once is enough, but nobody may end the users before.
            while not judge.closed:
                gevent.sleep(STEP_S)
            return
        self._is_closing = True
        judge.begin_closing()
        # Of a server that is gone nothing comes any more.
        patience_s = self.plan.patience if not judge.failures else ABORTED_PATIENCE_S
        if isinstance(self.runner, MasterRunner):
            self._close_workers(self.runner, judge, patience_s)
        elif self.side is not None:
            published = self.side.finish_publishing(gevent.sleep, patience_s)
            judge.take_final("local", self.side.finish_reading(published, gevent.sleep, patience_s))
        if self._watch is not None:
            self._watch.stop()
        judge.close(self.environment)

    def _close_workers(self, runner: MasterRunner, judge: Judge, patience_s: float) -> None:
        answers = self._ask_all(runner, CLOSE, {"patience_s": patience_s}, patience_s)
        published = sum_published(answers.values())
        due = {"published": published, "patience_s": patience_s}
        for client_id, answer in self._ask_all(runner, DUE, due, patience_s).items():
            judge.take_final(client_id, answer)
        silent = len(self._expected) - judge.finals
        if silent and not judge.failures:
            judge.fail(f"{silent} of {len(self._expected)} workers did not say what they have received")

    def _ask_all(
        self, runner: MasterRunner, question: str, data: dict[str, Any], patience_s: float
    ) -> dict[str, dict[str, Any]]:
        """Send a message to all workers and wait for their answers, as long as they are there and have something to do.

        A worker waits for its own users with the same patience, and each message that comes is a reason to wait on.
        """
        self._answers = {}
        there = [each for each in self._expected if each in runner.clients]
        for client_id in there:
            runner.send_message(question, data, client_id=client_id)
        deadline = time.monotonic() + CLOSING_S_MAX + 2 * patience_s
        while time.monotonic() < deadline:
            waited = [each for each in there if each in runner.clients and runner.clients[each].state != STATE_MISSING]
            if all(each in self._answers for each in waited):
                break
            gevent.sleep(STEP_S)
        return self._answers

    def answered(self, message: Message) -> None:
        """Take a worker's answer."""
        self._answers[message.node_id] = message.data

    def finish_publishing(self, message: Message) -> None:
        """The master asks: let publishers end, and say what was published."""
        if self.side is not None:
            patience_s = float(message.data["patience_s"])
            self.runner.send_message(PUBLISHED, self.side.finish_publishing(gevent.sleep, patience_s))

    def finish_reading(self, message: Message) -> None:
        """The master asks: let readers have what they are due, and say what came of everything."""
        if self.side is not None:
            patience_s = float(message.data["patience_s"])
            self.runner.send_message(
                FINAL, self.side.finish_reading(message.data["published"], gevent.sleep, patience_s)
            )

    def seat(self, message: Message) -> None:
        """Take a number back from a worker's user, or give one."""
        kind, runner = message.data["kind"], self.runner
        if "number" in message.data:
            self._seats.leave(kind, message.data["number"])
            return
        seated = {"ticket": message.data["ticket"], "number": self._seats.take(kind)}
        runner.send_message(SEATED, seated, client_id=message.node_id)

    def seated(self, message: Message) -> None:
        """The master has a number for a user."""
        waiting = self._waiting.get(message.data["ticket"])
        if waiting is not None:
            waiting.set(message.data["number"])

    def quitting(self) -> None:
        """Locust is about to end: what it ends with is the verdict of the last test."""
        if self.judge is None:
            return
        self.close()
        if not self.judge.passed:
            self.environment.process_exit_code = EXIT_FAILED


_conductors: list[Conductor] = []
"""The one of this process, once Locust has read its options: there is one environment in each."""


def conductor_here() -> Conductor | None:
    """Return the conductor of this process, or None while there is none."""
    return _conductors[0] if _conductors else None


def side_here() -> Side:
    """Return the side that the users of this process belong to.

    Raises:
        RuntimeError: No test has begun.
    """
    conductor = conductor_here()
    if conductor is None or conductor.side is None:
        raise RuntimeError("load test: a user came before the test began")
    return conductor.side


def speak_plainly() -> None:
    """Have warnings of Locust, and ours, come as plain lines on stderr: there is a screen besides."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("locust")
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False
    # Its table of response times, which are rounded; the verdict has ours.
    logging.getLogger("locust.stats_logger").setLevel(logging.ERROR)


def refuse(complaints: list[str], code: int = EXIT_USAGE) -> None:
    """End Locust before it has begun, and say why.

    Raises:
        SystemExit: Always.
    """
    for complaint in complaints:
        log.error("load test: %s", complaint)
    raise SystemExit(code)


def prepare(environment: Environment, user_classes: dict[str, list[type[User]]]) -> None:
    """Locust has read its options: check them, look at the broker, and choose whose users there will be.

    Raises:
        SystemExit: The options cannot be met, or there is no broker at the address.
    """
    parsed = environment.parsed_options
    assert parsed is not None
    if parsed.skip_log_setup:
        speak_plainly()
    plan = Plan.of(parsed)
    conductor = Conductor(environment, plan)
    _conductors.append(conductor)
    # Users that were named on the command line are as good as a scenario.
    if not parsed.user_classes:
        environment.user_classes = list(user_classes[plan.scenario])
    runner = conductor.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message(CLOSE, lambda environment, msg: conductor.finish_publishing(msg), concurrent=True)
        runner.register_message(DUE, lambda environment, msg: conductor.finish_reading(msg), concurrent=True)
        runner.register_message(SEATED, lambda environment, msg: conductor.seated(msg))
        gevent.spawn(conductor.watch_master)
        return
    # Locust hears of it only when a shape is over; workers end with their master.
    gevent.signal_handler(signal.SIGTERM, lambda: gevent.spawn(runner.quit))
    complaints = plan.complaints()
    if not conductor.url:
        complaints.append("--host: got none; say where the broker is, such as --host broker://127.0.0.1:4770")
    if not complaints and parsed.headless and not parsed.user_classes:
        users = conductor.users()
        short = unreachable(plan, users, offered(plan, users))
        complaints += [] if short is None else [short]
    if complaints:
        refuse(complaints)
    if (complaint := complaint_of(conductor.url, plan)) is not None:
        refuse([complaint], EXIT_FAILED)
    if isinstance(runner, MasterRunner):
        runner.register_message(PUBLISHED, lambda environment, msg: conductor.answered(msg))
        runner.register_message(FINAL, lambda environment, msg: conductor.answered(msg))
        runner.register_message(SEAT, lambda environment, msg: conductor.seat(msg))


def listen(user_classes: dict[str, list[type[User]]]) -> None:
    """Have Locust's events call the conductor of their process.

    Args:
        user_classes: whose users there are, by scenario.
    """

    def add_options(parser: LocustArgumentParser) -> None:
        group = parser.add_argument_group("load test of a broker", "What the users do, and what must come of it.")
        for each in options():
            told = f"{each.explained}{f' ({each.unit})' if each.unit else ''}. Defaults to {each.default!r}."
            # Percent signs are argparse's own.
            group.add_argument(
                each.flag,
                type=each.kind,
                default=each.default,
                choices=each.choices or None,
                help=told.replace("%", "%%"),
            )
        group.add_argument(f"--{TEST_OPTION.replace('_', '-')}", default="", help="set by the master")
        parser.set_defaults(num_users=USERS_DEFAULT, spawn_rate=SPAWN_RATE)

    def on_init(environment: Environment, **_: object) -> None:
        prepare(environment, user_classes)

    def on_start(environment: Environment, **_: object) -> None:
        if (found := conductor_here()) is not None:
            found.begin()

    def on_complete(user_count: int, **_: object) -> None:
        if (found := conductor_here()) is not None:
            found.complete(user_count)

    def on_report(client_id: str, data: dict[str, Any], **_: object) -> None:
        if (found := conductor_here()) is not None:
            found.report_to_master(data)

    def on_worker(client_id: str, data: dict[str, Any], **_: object) -> None:
        if (found := conductor_here()) is not None:
            found.worker_reports(client_id, data)

    def on_stopping(environment: Environment, **_: object) -> None:
        if (found := conductor_here()) is not None:
            found.close()

    def on_quitting(environment: Environment, **_: object) -> None:
        if (found := conductor_here()) is not None:
            found.quitting()

    for event, listener in (
        (events.init_command_line_parser, add_options),
        (events.init, on_init),
        (events.test_start, on_start),
        (events.spawning_complete, on_complete),
        (events.report_to_master, on_report),
        (events.worker_report, on_worker),
        (events.test_stopping, on_stopping),
        (events.quitting, on_quitting),
    ):
        event.add_listener(listener)
