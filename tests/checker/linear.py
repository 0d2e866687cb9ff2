"""Whether a history of conditional publishes to one channel is linearizable: Wing and Gong's search, Lowe's memory.

A channel's head is a register: a publish that expects a head swaps it for its own position, or is told another head;
who asks for the head reads it. A history is linearizable if each operation can be given one instant between its call
and its answer so that a register, which does one thing at a time, answers all of them as they were answered. One
without an answer may have happened at any instant after its call, or never.

The search puts operations in order, one that nobody's answer precedes at a time, and goes back when the register would
have answered otherwise. What it has found hopeless, a set of operations done and a head, it does not try again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

__all__ = ["EMPTY", "Asked", "Conflicted", "Head", "Operation", "Unknown", "Won", "linearize"]


class Head(NamedTuple):
    """The newest position of a channel; (0, 0) of one that never had a record."""

    epoch: int
    sequence: int


EMPTY = Head(0, 0)


class Won(NamedTuple):
    """The publish expected this head and was stored there."""

    expect: Head
    at: Head


class Conflicted(NamedTuple):
    """The publish expected a head, and was told another one."""

    expect: Head
    told: Head


class Asked(NamedTuple):
    """Somebody asked for the head."""

    told: Head


class Unknown(NamedTuple):
    """The publish expected this head, and nobody knows what became of it."""

    expect: Head


@dataclass(frozen=True)
class Operation:
    """One call: `called` and `answered` are instants of one clock, infinity for one without an answer."""

    called: float
    answered: float
    what: Won | Conflicted | Asked | Unknown


def linearize(operations: list[Operation]) -> list[Operation] | None:
    """Return the operations in an order that explains their answers, without those that never happened; or None."""
    history = sorted(operations, key=lambda operation: operation.called)
    claimed = {operation.what.at for operation in history if isinstance(operation.what, Won)}
    heads = {head for operation in history for head in heads_in(operation.what)} - claimed
    owed = sum(1 << at for at, operation in enumerate(history) if operation.answered != inf)
    hopeless: set[tuple[int, Head]] = set()
    order: list[Operation] = []

    def search(done: int, head: Head) -> bool:
        if done & owed == owed:
            return True
        if (done, head) in hopeless:
            return False
        deadline = min(one.answered for at, one in enumerate(history) if not done >> at & 1)
        for at, operation in enumerate(history):
            if operation.called > deadline:
                break
            if done >> at & 1:
                continue
            for after in register(head, operation.what, heads):
                order.append(operation)
                if search(done | 1 << at, after):
                    return True
                order.pop()
        hopeless.add((done, head))
        return False

    return order if search(0, EMPTY) else None


def heads_in(what: Won | Conflicted | Asked | Unknown) -> list[Head]:
    """Return all heads that somebody named in an operation."""
    return [head for head in what if head != EMPTY]


def register(head: Head, what: Won | Conflicted | Asked | Unknown, unclaimed: set[Head]) -> list[Head]:
    """Return the heads that a register may have after an operation; none if it would have answered otherwise."""
    match what:
        case Won(expect, at):
            return [at] if head == expect and at.sequence == head.sequence + 1 else []
        case Conflicted(expect, told):
            return [head] if head == told != expect else []
        case Asked(told):
            return [head] if head == told else []
        case Unknown(expect) if head == expect:
            # It was stored at a position that only others have named, or that nobody ever has.
            unseen = Head(-1, head.sequence + 1)
            return [*(other for other in unclaimed if other.sequence == head.sequence + 1), unseen]
    return []
