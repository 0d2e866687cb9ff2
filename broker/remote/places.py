"""Where a subscription stands, and what it asks for when it has to begin again.

Pure. Two ways to stand (specification §5): a subscription of literals stands in each channel by (epoch, sequence);
one with a pattern, or that began by time or by bus position, stands at a place of the bus. Both are places of what was
received, not of what was read: what is received waits in the client and needs no server.

A batch that came before its commit (EARLY) vouches only for the groups up to two before its own; what was seen of the
two in between is remembered by channel, so that it can be dropped when it comes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.bus import Last, Since, Start, SubscriptionEvent
from broker.model.errors import BrokerError, error
from broker.model.names import check_pattern, is_pattern
from broker.model.positions import BusPosition, Position
from broker.wire import control
from broker.wire.kinds import GoneReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_native.messages import Batch

INDEX_MAX = (1 << 32) - 1
FILTERS_MAX = 1000
"""What fits into one SUBSCRIBE, with a position for each."""


def make_places(filters: tuple[str, ...], start: Start, group: str | None = None) -> LiteralPlaces | BusPlace | NoPlace:
    """Check filters and a start, and choose the way to stand; the members of a live group stand nowhere.

    Raises:
        InvalidPattern: A filter is none.
        RequestError: INVALID_POSITION; the start does not fit the filters.
    """
    if not filters:
        raise error("INVALID_PATTERN", "subscribe: got 0 filters, expected at least 1")
    if len(filters) > FILTERS_MAX:
        raise error("TOO_MANY_SUBSCRIPTIONS", f"subscribe: got {len(filters)} filters, limit {FILTERS_MAX} filters")
    patterns = [item for item in filters if is_pattern(check_pattern(item))]
    wanted = wire_start(filters, start)
    if group is not None:
        return NoPlace(group, wanted)
    if patterns and isinstance(wanted, control.FromPositions | control.FromLast):
        raise error("INVALID_POSITION", f"start: {patterns[0]} is a pattern, and only channels have positions")
    if patterns or isinstance(wanted, control.FromBus | control.FromTime):
        return BusPlace(wanted)
    return LiteralPlaces(filters, wanted)


def wire_start(filters: tuple[str, ...], start: Start) -> control.Start:
    """Say a start in the words of the protocol."""
    match start:
        case "new":
            return control.FromNew()
        case "start":
            return control.FromStart()
        # Named tuples are matched by their class before anything that a tuple also is.
        case Position(epoch, sequence) if len(filters) == 1:
            return control.FromPositions(((filters[0], epoch, sequence),))
        case BusPosition(journal, group, index):
            return control.FromBus(journal, group, index)
        case Last(count) if count >= 0:
            return control.FromLast(count)
        case Since(time_us) if time_us >= 0:
            return control.FromTime(time_us)
        case dict():
            return control.FromPositions(tuple((name, *check_position(filters, name, start[name])) for name in start))
    raise bad_start(start)


def check_position(filters: tuple[str, ...], name: str, position: object) -> Position:
    if name not in filters:
        raise error("INVALID_POSITION", f"start: {name!a} is not among the filters")
    if not isinstance(position, Position):
        raise bad_start(position)
    return position


def bad_start(start: object) -> BrokerError:
    return error(
        "INVALID_POSITION",
        f"start: got {str(start)[:64]!a}, expected a place to start at",
        "use 'new', 'start', a Position for one channel, a dict of them, a BusPosition, Last or Since",
    )


class NoPlace:
    """A member of a live group: what it misses is somebody else's, so it begins anew each time."""

    def __init__(self, group: str, start: control.Start) -> None:
        size = len(group.encode())
        if not 0 < size <= control.GROUP_NAME_BYTES_MAX:
            raise error(
                "INVALID_PATTERN",
                f"group: got a name of {size} bytes, expected 1 to {control.GROUP_NAME_BYTES_MAX} bytes",
                "Give the group another name.",
            )
        if not isinstance(start, control.FromNew):
            raise error(
                "INVALID_POSITION",
                f"start: got one for a member of live group {group[:64]!a}, expected none: it begins with what comes",
                "Leave out the start, or use a consumer, which has a position.",
            )

    positions: Mapping[str, Position] = {}
    bus_position: BusPosition | None = None

    def connected(self, journal: bytes) -> list[SubscriptionEvent]:
        """Take the journal of a new connection, which means nothing."""
        return []

    def start(self) -> control.Start:
        """Return where to begin: with what comes."""
        return control.FromNew()

    def subscribed(self, answer: control.Subscribed) -> list[SubscriptionEvent]:
        """Take the server's answer; there is nothing to tell."""
        return []

    def accept(self, batch: Batch) -> tuple[Batch | None, SubscriptionEvent | None]:
        """Take a batch: all of it is new, and gaps before it are other members' messages."""
        return batch, None

    def dropped(self) -> None:
        """Take the server's word that nobody of the group got some messages."""

    def trimmed(self, channel: str, first: int) -> SubscriptionEvent:
        """Take the server's word that a channel goes on with `first`; it says so to no member."""
        return SubscriptionEvent("trimmed", channel, 0, first)


class LiteralPlaces:
    """The last received position of each channel."""

    def __init__(self, channels: tuple[str, ...], start: control.Start) -> None:
        self._channels = tuple(dict.fromkeys(channels))
        self._start = start
        self._journal = b""
        self._trimmed: dict[str, int] = {}  # channel: the sequence up to which the server has told of a gap
        self._dropped: set[str] = set()  # channels that may go on behind a gap, since messages were dropped
        self.positions: dict[str, Position] = {}

    bus_position: BusPosition | None = None

    def connected(self, journal: bytes) -> list[SubscriptionEvent]:
        """Take the journal of a new connection, before `start`; returns what there is to tell.

        Positions do not name their journal, and epochs of two journals may be equal: the server cannot tell.
        """
        events = []
        self._trimmed.clear()
        self._dropped.clear()
        if self._journal and journal != self._journal:
            events = [SubscriptionEvent("diverged", name, 0, 0) for name in self.positions]
            self.positions = dict.fromkeys(self.positions, Position(0, 0))
        self._journal = journal
        return events

    def start(self) -> control.Start:
        """Return where to begin, or to go on."""
        if not self.positions:
            return self._start
        # A channel that is not listed would start new: those of which nothing is known keep to what was asked.
        known: dict[str, tuple[int, int]] = {}
        match self._start:
            case control.FromStart():
                known = dict.fromkeys(self._channels, (0, 0))
            case control.FromPositions(positions):
                known = {name: (epoch, sequence) for name, epoch, sequence in positions}
        return control.FromPositions(tuple((name, *place) for name, place in {**known, **self.positions}.items()))

    def subscribed(self, answer: control.Subscribed) -> list[SubscriptionEvent]:
        """Take the server's answer; returns what there is to tell."""
        events = []
        for outcome in answer.outcomes:
            name = outcome.channel
            if outcome.outcome != "new" and (self.positions or isinstance(self._start, control.FromPositions)):
                events.append(SubscriptionEvent(outcome.outcome, name, outcome.epoch, outcome.at))
            if outcome.outcome == "trimmed":
                self.positions[name] = Position(outcome.epoch, outcome.at - 1)
            elif outcome.outcome != "resumed" or name not in self.positions:
                self.positions[name] = self.asked(outcome)
        return events

    def asked(self, outcome: control.Outcome) -> Position:
        """Where a channel stands of which nothing was received yet."""
        if outcome.outcome == "resumed" and isinstance(self._start, control.FromPositions):
            for name, epoch, sequence in self._start.positions:
                if name == outcome.channel:
                    return Position(epoch, sequence)
        return Position(outcome.epoch, outcome.at)

    def accept(self, batch: Batch) -> tuple[Batch | None, SubscriptionEvent | None]:
        """Take a batch; returns what of it is new, and what there is to tell."""
        known = self.positions.get(batch.channel)
        self.positions[batch.channel] = Position(batch.epoch, batch.last)
        dropped = batch.channel in self._dropped
        self._dropped.discard(batch.channel)
        if known is None or batch.first == known.sequence + 1:
            return batch, None
        if batch.first > known.sequence:
            if dropped:
                first, run = known.sequence + 1, batch.first - known.sequence - 1
                return batch, SubscriptionEvent("gone", batch.channel, batch.epoch, first, run, GoneReason.DROPPED)
            told = self._trimmed.pop(batch.channel, 0) == batch.first
            return batch, None if told else SubscriptionEvent("trimmed", batch.channel, batch.epoch, batch.first)
        if batch.epoch != known.epoch:
            # A commit failed after its records were seen, and their sequences are given anew.
            return batch, SubscriptionEvent("diverged", batch.channel, batch.epoch, batch.first - 1)
        if batch.last < known.sequence:
            self.positions[batch.channel] = known
        return batch.after(known.sequence), None

    def dropped(self) -> None:
        """Take the server's word that each channel may go on behind a gap, once."""
        self._dropped.update(self._channels)

    def trimmed(self, channel: str, first: int) -> SubscriptionEvent:
        """Take the server's word that what comes next begins with `first`; returns what there is to tell, once.

        The position stays: it is one that was received, and resuming from it is answered `trimmed` again.
        """
        self._trimmed[channel] = first
        known = self.positions.get(channel)
        return SubscriptionEvent("trimmed", channel, known.epoch if known is not None else 0, first)


class BusPlace:
    """The place of the bus up to which everything was received."""

    def __init__(self, start: control.Start) -> None:
        self._start = start
        self._place: control.FromBus | None = None
        self._early: dict[str, tuple[int, int, int]] = {}  # channel: epoch, last sequence, group

    positions: Mapping[str, Position] = {}

    def connected(self, journal: bytes) -> list[SubscriptionEvent]:
        """Take the journal of a new connection. A place names its own, so the server tells that it is another."""
        if self._place is not None and journal != self._place.journal:
            self._early.clear()
        return []

    @property
    def bus_position(self) -> BusPosition | None:
        """The place, once there is one."""
        place = self._place
        return None if place is None else BusPosition(place.journal, place.group, place.index)

    def start(self) -> control.Start:
        """Return where to begin, or to go on."""
        return self._start if self._place is None else self._place

    def subscribed(self, answer: control.Subscribed) -> list[SubscriptionEvent]:
        """Take the server's answer; returns what there is to tell."""
        asked = isinstance(self.start(), control.FromBus)
        self._place = answer.bus
        return [
            SubscriptionEvent(outcome.outcome, "", outcome.epoch, outcome.at)
            for outcome in answer.outcomes
            if asked and not outcome.channel
        ]

    def accept(self, batch: Batch) -> tuple[Batch | None, SubscriptionEvent | None]:
        """Take a batch; returns what of it is new, and what there is to tell."""
        known = self._early.get(batch.channel)
        rest: Batch | None = batch
        if known is not None and known[0] == batch.epoch and batch.first <= known[1]:
            rest = batch.after(known[1])
        if batch.group:
            self._advance(batch)
        return rest, None

    def dropped(self) -> None:
        """Take the server's word that channels may go on behind a gap; the place knows of none of them."""

    def trimmed(self, channel: str, first: int) -> SubscriptionEvent:
        """Take the server's word that a channel goes on with `first`; the place knows of no channel."""
        return SubscriptionEvent("trimmed", channel, 0, first)

    def _advance(self, batch: Batch) -> None:
        if batch.early:
            known = self._early.get(batch.channel)
            # A crash may have taken what was seen early: sequences of another epoch say nothing about this one.
            last = max(batch.last, known[1]) if known is not None and known[0] == batch.epoch else batch.last
            self._early[batch.channel] = (batch.epoch, last, batch.group)
            self._reach(batch.group - 2, INDEX_MAX)
        else:
            self._reach(batch.group, batch.index)

    def _reach(self, group: int, index: int) -> None:
        """Move the place forward, never back, and forget what was seen early up to it."""
        place = self._place
        if place is None or (group, index) <= (place.group, place.index):
            return
        self._place = control.FromBus(place.journal, group, index)
        if self._early and group > place.group:
            whole = group if index == INDEX_MAX else group - 1
            self._early = {name: seen for name, seen in self._early.items() if seen[2] > whole}
