"""A conversation as it is played and as it is written down.

A script plays on a `Stage` and notes everything in a `Trace`: stage directions (`!`), what a client sends (`>`) and
what it is answered (`<`). A trace is a readable file; `Trace.parse` reads it back, and `play` gives it to a stage.

    # words for people
    ! connect client          a client connects
    ! disconnect client       it goes away
    ! wait 1000               microseconds pass
    ! hold                    commits wait from here on
    ! release STORED          what becomes of the one that waits (a `Fate`); the others go on
    ! fail LOST               the same, but what follows waits on
    ! crash                   the broker dies, and a new run begins on its journal
    ! drain 10                it begins to stop
    ! end                     it stops
    ! closed client           the broker has ended the connection (a claim, not an order)
    > client                  bytes that the client sends, a field a line
    < client                  bytes that it receives before the next of its own
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker.model.limits import Limits
from tests.golden.annotate import annotate, bytes_of, frames
from tests.golden.stage import LIMITS, Stage
from tests.reference.journal import Fate

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS_BY_NAME = {
    "small": LIMITS,
    "default": Limits(),
    "narrow": replace(LIMITS, subscription_bytes_max=100),
}


@dataclass
class Step:
    """One line of a trace with what belongs to it: `what` is !, > or <, `words` the rest of its line."""

    what: str
    words: str
    data: bytes = b""
    notes: list[str] = field(default_factory=list)


@dataclass
class Trace:
    """A conversation."""

    title: str
    limits: str
    steps: list[Step]

    def render(self) -> str:
        """Return the file's text."""
        lines = [f"# {self.title}", f"! limits {self.limits}"]
        for step in self.steps:
            lines.append("")
            lines += [f"# {note}".rstrip() for note in step.notes]
            lines.append(f"{step.what} {step.words}")
            for frame in frames(step.data):
                lines += [f"  {line}".rstrip() for line in annotate(frame)]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> Trace:
        """Read a file.

        Raises:
            ValueError: A line is none of a trace.
        """
        title, limits, steps = "", "small", []
        notes: list[str] = []
        for line in text.splitlines():
            if line.startswith("# "):
                if not title:
                    title = line[2:]
                else:
                    notes.append(line[2:])
            elif line.startswith("! limits "):
                limits = line.removeprefix("! limits ")
            elif line[:2] in ("! ", "> ", "< "):
                steps.append(Step(line[0], line[2:], notes=notes))
                notes = []
            elif line.startswith("  "):
                steps[-1].data += bytes_of([line])
            elif line:
                raise ValueError(f"trace: {line!r} is no line of one")
        return cls(title, limits, steps)


def direct(stage: Stage, words: str) -> None:
    """Follow one stage direction."""
    verb, _, rest = words.partition(" ")
    acts: dict[str, Callable[[], object]] = {
        "connect": lambda: stage.connect(rest),
        "disconnect": lambda: stage.disconnect(rest),
        "wait": lambda: stage.wait(int(rest)),
        "hold": stage.hold,
        "release": lambda: stage.release(Fate[rest]),
        "fail": lambda: stage.fail(Fate[rest]),
        "crash": stage.crash,
        "drain": lambda: stage.drain(float(rest)),
        "end": stage.end,
    }
    if verb == "closed":
        assert stage.clients[rest].closed, f"{rest} is still connected"
    else:
        acts[verb]()


class Script:
    """Plays a conversation and notes it."""

    def __init__(self, title: str, limits: str = "small") -> None:
        self.trace = Trace(title, limits, [])
        self.stage = Stage(limits=LIMITS_BY_NAME[limits])
        self._notes: list[str] = []
        self._closed: set[str] = set()

    def note(self, *lines: str) -> None:
        """Say something about the next step."""
        self._notes += lines

    def act(self, words: str) -> None:
        """Follow a stage direction."""
        self._add("!", words)
        direct(self.stage, words)
        if words.startswith("connect "):
            self._closed.discard(words.split()[1])
        elif words.startswith("disconnect "):
            self._closed.add(words.split()[1])
        elif words == "crash":
            self._closed.update(self.stage.clients)
        self.stage.settle()
        self.hear()

    def send(self, name: str, *sent: bytes) -> bytes:
        """Send frames, let the broker work, and note its answers; returns those to this client."""
        self._add(">", name, b"".join(sent))
        self.stage.feed(name, b"".join(sent))
        self.stage.settle()
        return self.hear().get(name, b"")

    def hear(self) -> dict[str, bytes]:
        """Note what every client has been sent, and return it."""
        heard = {}
        for name, client in self.stage.clients.items():
            received = client.take()
            if received:
                heard[name] = received
                self._add("<", name, received)
            if client.closed and name not in self._closed:
                self._closed.add(name)
                self._add("!", f"closed {name}")
        return heard

    def _add(self, what: str, words: str, data: bytes = b"") -> None:
        self.trace.steps.append(Step(what, words, data, self._notes))
        self._notes = []


def play(trace: Trace, cut: Callable[[bytes], list[bytes]], *, apart: bool) -> None:
    """Give a trace's client bytes to a stage, and compare what comes back.

    Args:
        trace: The conversation.
        cut: Cuts what a client sends at a time into the pieces in which it arrives.
        apart: Whether each piece comes in an iteration of the loop of its own. Without it they come in one, so that
            what a turn does with several frames does not depend on where they are cut.

    Raises:
        AssertionError: A client receives something else.
    """
    stage = Stage(limits=LIMITS_BY_NAME[trace.limits])
    received: dict[str, bytes] = {}
    for step in trace.steps:
        if step.what == "<":
            assert received.pop(step.words, b"") == step.data, f"< {step.words}: {' '.join(step.notes)}"
            continue
        if step.words.startswith("closed "):
            direct(stage, step.words)
            continue
        assert not received, f"nobody expected what came before {step.what} {step.words}: {received}"
        if step.what == ">":
            for piece in cut(step.data):
                stage.feed(step.words, piece)
                if apart:
                    stage.settle()
        else:
            direct(stage, step.words)
        stage.settle()
        received = {name: data for name, client in stage.clients.items() if (data := client.take())}
    assert not received, f"nobody expected what came last: {received}"
