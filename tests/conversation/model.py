"""What a conversation should be told: a broker in plain Python, without bytes, turns or chunks.

It knows what each channel holds (committed, seen early, waiting), what each producer's line has taken, and what each
subscription has been handed. It predicts answers exactly: positions, levels, codes. Epochs it does not predict; it
learns them, and demands that they stay until it says that a new one begins. Everything is published in order, so a
channel is a list of payloads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EPHEMERAL, ACCEPTED, SYNCED = 1, 2, 3
LEVELS = {b"e.x": EPHEMERAL, b"a.x": ACCEPTED, b"s.x": SYNCED}


@dataclass
class Record:
    """One record: where it is, and when whoever published it is told."""

    name: bytes
    sequence: int
    payload: bytes


@dataclass
class Channel:
    """What a channel holds: `committed`, then what is pending, of which `early` may have been seen already."""

    name: bytes
    committed: list[bytes] = field(default_factory=list)
    pending: list[bytes] = field(default_factory=list)
    epoch: int | None = None
    """As it was told last; None before that, and after records that were seen are gone."""

    @property
    def level(self) -> int:
        return LEVELS[self.name]

    @property
    def head(self) -> int:
        """Sequence of the newest record that readers may see."""
        return len(self.committed) + (len(self.pending) if self.level == ACCEPTED else 0)

    @property
    def visible(self) -> list[bytes]:
        """What readers may see."""
        return self.committed + (self.pending if self.level == ACCEPTED else [])

    def take(self, payload: bytes) -> Record:
        """Decide one record."""
        record = Record(self.name, len(self.committed) + len(self.pending) + 1, payload)
        (self.committed if self.level == EPHEMERAL else self.pending).append(payload)
        return record

    def check_epoch(self, epoch: int) -> None:
        """It stays what it is until it is lost."""
        assert epoch > 0
        if self.epoch is None:
            self.epoch = epoch
        assert self.epoch == epoch, f"{self.name!r}: epoch {epoch:#x}, expected {self.epoch:#x}"


Answer = tuple[int, str, int, int]
"""(number, "published" | "duplicate" | the name of an error, level, sequence); 0 where there is none."""


@dataclass
class Line:
    """A producer's numbers: what each became."""

    named: bool
    """It belongs to a producer; where the numbers of one that ends with its connection went is not remembered."""
    numbers: list[Record] = field(default_factory=list)

    @property
    def next(self) -> int:
        return len(self.numbers) + 1


@dataclass
class Waiting:
    """Answers that leave when a group is committed."""

    line: Line
    client: int
    answers: list[Answer]


@dataclass
class Group:
    """What is committed together."""

    records: list[tuple[Line, int, Record]] = field(default_factory=list)
    """(line, number, record) of everything that is stored."""
    waiting: list[Waiting] = field(default_factory=list)

    def first_of(self, line: Line) -> int:
        """The first number of the line in it, 0 for none."""
        return next((number for owner, number, _ in self.records if owner is line), 0)


class Broker:
    """The model."""

    def __init__(self) -> None:
        self.channels = {name: Channel(name) for name in LEVELS}
        self.closed: Group | None = None
        """The group in commit."""
        self.open = Group()
        self.lines: dict[bytes, Line] = {}
        self.due: dict[int, list[Answer]] = {}
        """What each client is to be told now."""

    # -- publishing --

    def tell(self, client: int, *answers: Answer) -> None:
        self.due.setdefault(client, []).extend(answers)

    def publish(self, client: int, line: Line, name: bytes, payloads: list[bytes]) -> None:
        """Take records under the line's next numbers."""
        for payload in payloads:
            number = line.next
            record = self.channels[name].take(payload)
            line.numbers.append(record)
            answer = (number, "published", LEVELS[name], record.sequence)
            if LEVELS[name] == SYNCED:
                self.open.waiting.append(Waiting(line, client, [answer]))
            else:
                self.tell(client, answer)
            if LEVELS[name] != EPHEMERAL:
                self.open.records.append((line, number, record))

    def repeat(self, client: int, line: Line, level: int, number: int, count: int) -> None:
        """Answer numbers that were taken before, when it is known for good where they went.

        Args:
            client: Who asks.
            line: Whose numbers.
            level: Of the channel that it asks about: what is said of a number whose place is not known.
            number, count: Which.
        """
        answers: list[Answer] = []
        for at in range(number, number + count):
            record = line.numbers[at - 1]
            known = line.named and LEVELS[record.name] != EPHEMERAL
            answers.append((at, "duplicate", LEVELS[record.name] if known else level, record.sequence if known else 0))
        last = number + count - 1
        for group in (self.open, self.closed):
            if group is not None and group.first_of(line) and last >= group.first_of(line):
                group.waiting.append(Waiting(line, client, answers))
                return
        self.tell(client, *answers)

    # -- groups --

    def close(self) -> None:
        """A turn has ended: what is open goes to the journal if nothing else is on its way there."""
        if self.closed is None and self.open.records:
            self.closed, self.open = self.open, Group()

    def commit(self) -> None:
        """The group in commit is stored."""
        assert self.closed is not None
        group, self.closed = self.closed, None
        for _, _, record in group.records:
            channel = self.channels[record.name]
            channel.committed.append(channel.pending.pop(0))
        for waiting in group.waiting:
            self.tell(waiting.client, *waiting.answers)
        self.close()

    def fail(self, *, handed_over: bool) -> None:
        """The group in commit is not stored, and what is open goes with it."""
        assert self.closed is not None
        for group, why in ((self.closed, "COMMIT_UNKNOWN"), (self.open, "COMMIT_REFUSED")):
            for waiting in group.waiting:
                failed = why if handed_over else "COMMIT_REFUSED"
                self.tell(waiting.client, *((number, failed, 0, 0) for number, _, _, _ in waiting.answers))
            for line, number, _ in group.records:
                del line.numbers[number - 1 :]
        self.closed, self.open = None, Group()
        for channel in self.channels.values():
            if channel.pending:
                channel.pending.clear()
                channel.epoch = None

    def forget(self, client: int) -> None:
        """The client has gone: nobody is told."""
        self.due.pop(client, None)
        for group in (self.closed, self.open):
            if group is not None:
                group.waiting = [waiting for waiting in group.waiting if waiting.client != client]
