"""Where a subscription begins: its filters, and what it is told of each place that it asks for.

Runs on the node's loop only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.access.gate import Verb
from broker.model.errors import error
from broker.model.levels import Level
from broker.model.names import check_channel, check_pattern, display, is_pattern
from broker.node.catchup import INDEX_END, Following, Wanted
from broker.wire import control

if TYPE_CHECKING:
    from broker.edge.session import Session

__all__ = ["check_filters", "check_ways", "place", "place_member", "take_filters"]


def check_filters(session: Session, request: control.Subscribe) -> None:
    """Hold a SUBSCRIBE against the gate. What was stored before it is history, from wherever it begins.

    Raises:
        Denied: A filter does not lie within what is granted.
    """
    verbs = [Verb.SUBSCRIBE] if isinstance(request.start, control.FromNew) else [Verb.SUBSCRIBE, Verb.HISTORY]
    for verb in verbs:
        for item in request.filters:
            session.node.gate.check(session.identity, verb, item.encode())


def take_filters(session: Session, filters: tuple[str, ...]) -> tuple[list[bytes], list[bytes]]:
    """Check filters; return their literals, which are in memory then, and their patterns, each once.

    Raises:
        BrokerError: INVALID_PATTERN, NO_PROFILE, …
    """
    literals: list[bytes] = []
    patterns: list[bytes] = []
    for checked in dict.fromkeys(check_pattern(item) for item in filters):
        if is_pattern(checked):
            check_ways(session, checked)
            patterns.append(checked)
        else:
            literals.append(checked)
    session.need(literals)
    for name in literals:
        session.node.core.load(name)
    return literals, patterns


def check_ways(session: Session, pattern: bytes) -> None:
    """Hold the bound on the ways in which patterns can match one name, whoever subscribes to them."""
    tokens, limit = pattern.count(b".") + 1, session.node.limits.pattern_tokens_max
    if tokens > limit and b"*" in pattern:
        raise error("INVALID_PATTERN", f"pattern {display(pattern)}: got {tokens} tokens with a *, limit {limit}")


def place(session: Session, following: Following, start: control.Start) -> list[control.Outcome]:
    """Put a subscription where it starts; answers what it is told."""
    match start:
        case control.FromPositions(positions):
            return place_positions(session, following, positions)
        case control.FromBus(journal, group, index):
            return place_bus(session, following, journal, group, index)
        case control.FromStart():
            if following.patterns:
                follow_bus(session, following, 0, 0)
                return []
            return [place_literal(session, following, name, 0, 0) for name in following.literals]
        case control.FromLast(count):
            return place_last(session, following, count)
    if following.patterns:
        follow_bus(session, following, session.node.core.applied_number, INDEX_END)
    return [outcome_new(session, name) for name in following.literals]


def place_member(session: Session, following: Following, request: control.Subscribe) -> list[control.Outcome]:
    """Let a subscription be a member of a live group, which stands nowhere."""
    if not isinstance(request.start, control.FromNew):
        raise error(
            "INVALID_POSITION",
            f"start: got one for a member of live group {request.group}, expected none: it begins with what comes",
            "Leave out the start, or use a consumer, which has a position.",
        )
    following.subscription.group = request.group
    return [outcome_new(session, name) for name in following.literals]


def follow_bus(session: Session, following: Following, group: int, index: int) -> None:
    following.place = (max(group, 0), index)
    following.wanted = Wanted(session.node.core, following.literals, following.patterns)


def place_bus(session: Session, following: Following, journal: bytes, group: int, index: int) -> list[control.Outcome]:
    core = session.node.core
    if journal != core.journal or group > core.applied_number:
        follow_bus(session, following, core.applied_number, INDEX_END)
        return [control.Outcome("", "diverged", 0, core.applied_number)]
    follow_bus(session, following, group, min(index, INDEX_END))
    return [control.Outcome("", "resumed", 0, group)]


def place_positions(
    session: Session, following: Following, positions: tuple[tuple[str, int, int], ...]
) -> list[control.Outcome]:
    if following.patterns:
        raise error(
            "INVALID_POSITION",
            "start: positions are for literals only, and the subscription has a pattern",
            "start patterns with `bus`, `time_us` or `start`",
        )
    asked = {check_channel(name): (epoch, sequence) for name, epoch, sequence in positions}
    for name in asked:
        if name not in following.literals:
            raise error("INVALID_POSITION", f"start: {name.decode()} is not among the filters")
    return [
        place_literal(session, following, name, *asked[name]) if name in asked else outcome_new(session, name)
        for name in following.literals
    ]


def place_literal(session: Session, following: Following, name: bytes, epoch: int, sequence: int) -> control.Outcome:
    info = session.node.tails.info(name)
    assert info is not None
    _, level, current, _, _, _, seen_next, _ = info
    if level == Level.EPHEMERAL:
        return place_ephemeral(name, current, seen_next, epoch, sequence)
    outcome = session.node.core.resume(name, epoch, sequence)
    following.after[name] = outcome.after
    return control.Outcome(name.decode(), outcome.name, current, outcome.at)


def place_ephemeral(name: bytes, current: int, seen_next: int, epoch: int, sequence: int) -> control.Outcome:
    """Ephemeral messages are never read back: a place is good only if it is the newest."""
    if sequence == 0 and epoch == 0:
        return control.Outcome(name.decode(), "new", current, seen_next - 1)
    if epoch != current or sequence >= seen_next:
        return control.Outcome(name.decode(), "diverged", current, seen_next - 1)
    if sequence < seen_next - 1:
        return control.Outcome(name.decode(), "trimmed", current, seen_next)
    return control.Outcome(name.decode(), "resumed", current, sequence)


def place_last(session: Session, following: Following, count: int) -> list[control.Outcome]:
    if following.patterns:
        raise error("INVALID_POSITION", "start: `last` is for literals only, and the subscription has a pattern")
    outcomes = []
    for name in following.literals:
        info = session.node.tails.info(name)
        assert info is not None
        if info[1] == Level.EPHEMERAL:
            outcomes.append(outcome_new(session, name))
            continue
        after = following.after[name] = max(info[3] - 1, info[6] - 1 - count)
        outcomes.append(control.Outcome(name.decode(), "resumed", info[2], after))
    return outcomes


def outcome_new(session: Session, name: bytes) -> control.Outcome:
    info = session.node.tails.info(name)
    assert info is not None
    return control.Outcome(name.decode(), "new", info[2], info[6] - 1)
