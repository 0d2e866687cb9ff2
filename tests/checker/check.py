"""The log checker: one history in, one verdict out.

Each rule is one function over the evidence that yields what it found; none knows of another. What they say together is
the broker's promise:

- an acknowledged record is in the log at its position, unless a trim that somebody asked for took it, or a crash took
  it within the window that the level `accepted` allows;
- a record that readers of a synced channel saw, or that the journal reported as committed, is in the log too;
- the log is dense, each position has one value and each value one position, in the order of each producer and of real
  time, and epochs only grow;
- every consumer gets the log from where it began, each record once and in order, whatever happens to its connection.

`tests/checker/naive.py` says the same a second time, slowly and without any index.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from tests.checker.consumers import check_consumers
from tests.checker.evidence import NEVER, Evidence
from tests.checker.history import ACCEPTED, SYNCED
from tests.checker.verdict import Anomaly, Kind, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.checker.evidence import Answer
    from tests.checker.history import History


def check(history: History) -> Verdict:
    """Judge a history.

    Returns:
        The verdict; `Verdict.passed` says whether the broker kept its promise. Linear in the number of records:
        about 10 µs for one that is published, stored and read by two consumers.

    Raises:
        HistoryError: the history contradicts itself, whatever the broker did.
    """
    evidence = Evidence(history)
    findings: dict[object, Anomaly] = {}
    for anomaly in chain.from_iterable(rule(evidence) for rule in RULES):
        findings.setdefault(anomaly[:-1], anomaly)
    return Verdict(
        anomalies=tuple(findings.values()),
        acknowledged=len(evidence.acked_at),
        unanswered=len(evidence.invoked) - len(evidence.acked_at.keys() | evidence.refused),
        delivered=sum(len(event.values) for _, event in evidence.deliveries),
        stored=sum(len(run.values) for runs in history.log.values() for run in runs),
        excused=sum(1 for ack in evidence.acks if _excused(evidence, ack) for _ in _absent(evidence, ack)),
    )


def check_origin(evidence: Evidence) -> Iterator[Anomaly]:
    """Each value that is read was published before, to that channel, and not refused."""
    for index, event in evidence.deliveries:
        yield from _check_origin(evidence, index, event.channel, event.epoch, event.first, event.values)
    for channel, runs in evidence.history.log.items():
        for run in runs:
            yield from _check_origin(evidence, NEVER - 1, channel, run.epoch, run.first, run.values)


def _check_origin(
    evidence: Evidence, read_at: int, channel: str, epoch: int, first: int, values: Sequence[int]
) -> Iterator[Anomaly]:
    for sequence, value in enumerate(values, first):
        if value in evidence.refused:
            yield Anomaly(Kind.FROM_NOWHERE, channel, epoch, sequence, 1, "", f"value {value} was refused")
        elif evidence.invoked.get(value, NEVER) > read_at:
            yield Anomaly(Kind.FROM_NOWHERE, channel, epoch, sequence, 1, "", f"value {value} had not been published")
        elif evidence.calls[value].channel != channel:
            detail = f"value {value} was published to {evidence.calls[value].channel}"
            yield Anomaly(Kind.WRONG_CHANNEL, channel, epoch, sequence, 1, "", detail)


def check_agreement(evidence: Evidence) -> Iterator[Anomaly]:
    """Producers, consumers and the log agree on the value at each position, and on the position of each value.

    Only the reader of an `accepted` channel may meet a value again: the first one was in a tail that a crash took, and
    the second is the producer's retry, in a later epoch.
    """
    claims: dict[tuple[str, int], dict[int, int]] = {}
    places: dict[str, dict[int, tuple[int, int]]] = {}
    for channel, epoch, first, values in _claims(evidence):
        known = claims.setdefault((channel, epoch), {})
        known_places = places.setdefault(channel, {})
        synced = evidence.history.level(channel) >= SYNCED
        for sequence, value in enumerate(values, first):
            claimed = known.get(sequence)
            if claimed == value:
                continue
            if claimed is None:
                known[sequence] = value
            else:
                yield Anomaly(Kind.INCONSISTENT, channel, epoch, sequence, 1, "", f"values {claimed} and {value}")
            place = known_places.setdefault(value, (epoch, sequence))
            if place != (epoch, sequence) and (synced or place[0] == epoch):
                detail = f"value {value} is at {place[0]}:{place[1]} too"
                yield Anomaly(Kind.DUPLICATE, channel, epoch, sequence, 1, "", detail)


def _claims(evidence: Evidence) -> Iterator[tuple[str, int, int, Sequence[int]]]:
    for channel, runs in evidence.history.log.items():
        for run in runs:
            yield channel, run.epoch, run.first, run.values
    for ack in evidence.acks:
        if ack.event.epoch:
            yield ack.channel, ack.event.epoch, ack.event.first, ack.values
    for _, event in evidence.deliveries:
        yield event.channel, event.epoch, event.first, event.values


def check_acks_kept(evidence: Evidence) -> Iterator[Anomaly]:
    """What was acknowledged is in the log where the acknowledgement said."""
    somewhere: set[int] | None = None
    for ack in evidence.acks:
        if ack.event.level < ACCEPTED or _excused(evidence, ack):
            continue
        if ack.event.epoch:
            for sequence, value in _absent(evidence, ack):
                detail = f"value {value} was acknowledged there"
                yield Anomaly(Kind.LOST, ack.channel, ack.event.epoch, sequence, 1, "", detail)
        elif ack.channel not in evidence.trim_asked:
            if somewhere is None:
                somewhere = {value for channel in evidence.at for _, _, value in evidence.entries(channel)}
            for value in ack.values:
                if value not in somewhere:
                    detail = f"value {value} was acknowledged as stored earlier"
                    yield Anomaly(Kind.LOST, ack.channel, 0, 0, 1, "", detail)


def _absent(evidence: Evidence, ack: Answer) -> list[tuple[int, int]]:
    """Return (sequence, value) of what has an acknowledged position that the log does not have."""
    if not ack.event.epoch:
        return []
    stored = evidence.stored(ack.channel, ack.event.epoch)
    return [
        (sequence, value)
        for sequence, value in enumerate(ack.values, ack.event.first)
        if sequence not in stored and not evidence.may_be_trimmed(ack.channel, sequence)
    ]


def _excused(evidence: Evidence, ack: Answer) -> bool:
    """Say whether the level of the acknowledgement lets a crash take its records.

    The server takes no `accepted` record while its oldest uncommitted one is older than the window. So what one crash
    takes was acknowledged within a window before the last acknowledgement of that life, however long the commit in
    which it would have been had been under way. When it was written down is another matter: a recorder that had no turn
    for a while gets to the last one by so much later.
    """
    if ack.event.level != ACCEPTED or ack.life not in evidence.crashed:
        return False
    window_s = evidence.history.accepted_window_s + evidence.stalled_s.get(ack.life, 0.0)
    return evidence.last_accepted_s[ack.life] - ack.event.at_s <= window_s


def check_seen_kept(evidence: Evidence) -> Iterator[Anomaly]:
    """What a reader of a synced channel saw is in the log."""
    for _, event in evidence.deliveries:
        if evidence.history.level(event.channel) >= SYNCED:
            yield from _check_kept(evidence, event.channel, event.epoch, event.first, len(event.values), "was seen")


def check_commits_kept(evidence: Evidence) -> Iterator[Anomaly]:
    """What the journal reported as durable is in the log, whoever knows of it."""
    for _, event in evidence.commits:
        yield from _check_kept(evidence, event.channel, event.epoch, event.first, event.records, "was committed")


def _check_kept(evidence: Evidence, channel: str, epoch: int, first: int, count: int, why: str) -> Iterator[Anomaly]:
    stored = evidence.stored(channel, epoch)
    for sequence in range(first, first + count):
        if sequence not in stored and not evidence.may_be_trimmed(channel, sequence):
            yield Anomaly(Kind.LOST, channel, epoch, sequence, 1, "", f"a record {why} there")


def check_log(evidence: Evidence) -> Iterator[Anomaly]:
    """The log has no hole, runs forwards, and its epochs only grow."""
    for channel, runs in evidence.history.log.items():
        bound = evidence.trim_asked.get(channel, 1)
        high, high_epoch = 0, 0
        for run in runs:
            for sequence, _ in enumerate(run.values, run.first):
                expected = high + 1 if high else min(sequence, bound)
                if sequence > expected:
                    detail = "the log has a hole"
                    yield Anomaly(Kind.LOST, channel, 0, expected, sequence - expected, "", detail)
                if run.epoch < high_epoch:
                    yield Anomaly(Kind.STALE_EPOCH, channel, run.epoch, sequence, 1, "", f"after epoch {high_epoch}")
                elif sequence <= high:
                    yield Anomaly(Kind.REORDERED, channel, run.epoch, sequence, 1, "", f"after sequence {high}")
                high, high_epoch = max(high, sequence), max(high_epoch, run.epoch)


def check_uniqueness(evidence: Evidence) -> Iterator[Anomaly]:
    """The log has each value once."""
    seen: set[int] = set()
    for channel in evidence.history.log:
        for epoch, sequence, value in evidence.entries(channel):
            if value in seen:
                yield Anomaly(Kind.DUPLICATE, channel, epoch, sequence, 1, "", f"value {value} is in the log before")
            seen.add(value)


def check_producer_order(evidence: Evidence) -> Iterator[Anomaly]:
    """Within a channel, the records of one producer stand in the order in which it published them."""
    for channel in evidence.history.log:
        highest: dict[str, int] = {}
        for epoch, sequence, value in _first_entries(evidence, channel):
            producer, number = evidence.calls[value].producer, evidence.numbers[value]
            before = highest.get(producer, number)
            if number < before:
                detail = f"number {number} of {producer} stands after its number {before}"
                yield Anomaly(Kind.REORDERED, channel, epoch, sequence, 1, "", detail)
            highest[producer] = max(number, before)


def check_real_time(evidence: Evidence) -> Iterator[Anomaly]:
    """Within a channel, what was acknowledged before another record was published stands before that."""
    for channel in evidence.history.log:
        acked = NEVER
        for epoch, sequence, value in reversed(list(_first_entries(evidence, channel))):
            if acked < evidence.invoked[value]:
                detail = f"value {value} was published after the acknowledgement of a record that stands behind it"
                yield Anomaly(Kind.REORDERED, channel, epoch, sequence, 1, "", detail)
            acked = min(acked, evidence.acked_at.get(value, NEVER))


def _first_entries(evidence: Evidence, channel: str) -> Iterator[tuple[int, int, int]]:
    """Yield the channel's entries with values that were published, each value once."""
    seen: set[int] = set()
    for epoch, sequence, value in evidence.entries(channel):
        if value in evidence.calls and value not in seen:
            seen.add(value)
            yield epoch, sequence, value


def check_durable_first(evidence: Evidence) -> Iterator[Anomaly]:
    """Nothing is acknowledged or shown before it has the durability that it claims, or less than was promised."""
    for ack in evidence.acks:
        if ack.event.level < evidence.history.level(ack.channel):
            for sequence, _ in enumerate(ack.values, ack.event.first):
                detail = f"acknowledged at level {ack.event.level} only"
                yield Anomaly(Kind.EARLY, ack.channel, ack.event.epoch, sequence, 1, "", detail)
    if evidence.commits:
        yield from _check_commit_order(evidence)


def _check_commit_order(evidence: Evidence) -> Iterator[Anomaly]:
    shown = [
        (ack.at, ack.channel, ack.event.epoch, ack.event.first, len(ack.values), "acknowledged")
        for ack in evidence.acks
        if ack.event.epoch and ack.event.level >= SYNCED
    ]
    shown += [
        (index, event.channel, event.epoch, event.first, len(event.values), "shown")
        for index, event in evidence.deliveries
        if evidence.history.level(event.channel) >= SYNCED
    ]
    committed: dict[tuple[str, int], int] = {}
    commits = iter([*evidence.commits, (NEVER, None)])
    commit_index, commit = next(commits)
    for index, channel, epoch, first, count, what in sorted(shown):
        while commit is not None and commit_index < index:
            key = commit.channel, commit.epoch
            committed[key] = max(committed.get(key, 0), commit.first + commit.records - 1)
            commit_index, commit = next(commits)
        for sequence in range(max(first, committed.get((channel, epoch), 0) + 1), first + count):
            yield Anomaly(Kind.EARLY, channel, epoch, sequence, 1, "", f"{what} before its commit")


def check_epochs(evidence: Evidence) -> Iterator[Anomaly]:
    """An `accepted` channel does not go on, after a crash, in an epoch that somebody may have seen more of."""
    seen: dict[tuple[str, int], int] = {}
    for index, event in evidence.deliveries:
        if event.values:  # a delivery of nothing shows nothing of the epoch
            seen.setdefault((event.channel, event.epoch), index)
    for ack in evidence.acks:
        key = ack.channel, ack.event.epoch
        seen[key] = min(ack.at, seen.get(key, NEVER))
    for ack in evidence.acks:
        if ack.event.level != ACCEPTED or not ack.event.epoch:
            continue
        for sequence, value in enumerate(ack.values, ack.event.first):
            if seen[ack.channel, ack.event.epoch] < evidence.crash_before(evidence.invoked[value]):
                detail = f"value {value} was published after the crash that ended the epoch"
                yield Anomaly(Kind.STALE_EPOCH, ack.channel, ack.event.epoch, sequence, 1, "", detail)


def check_trims(evidence: Evidence) -> Iterator[Anomaly]:
    """What an acknowledged trim removed stays away."""
    for channel, bound in evidence.trim_acked.items():
        for epoch, sequence, _ in evidence.entries(channel):
            if sequence < bound:
                detail = f"everything below {bound} was trimmed"
                yield Anomaly(Kind.RESURRECTED, channel, epoch, sequence, 1, "", detail)


RULES = (
    check_origin,
    check_agreement,
    check_acks_kept,
    check_seen_kept,
    check_commits_kept,
    check_log,
    check_uniqueness,
    check_producer_order,
    check_real_time,
    check_durable_first,
    check_epochs,
    check_trims,
    check_consumers,
)
