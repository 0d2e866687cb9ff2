"""The judge of conditional publishes is itself judged: it passes a register, and catches every mistake on its list."""

from __future__ import annotations

import random
from enum import Enum
from math import inf

import pytest

from tests.checker.linear import EMPTY, Asked, Conflicted, Head, Operation, Unknown, Won, linearize

SEEDS = range(40)
EPOCH = 7


class Mistake(Enum):
    """What a server may do wrong."""

    TWO_WINNERS = "the head is compared when the publish comes, and it is stored later"
    LOST_UPDATE = "a publish is answered as stored, and is not"
    OLD_HEAD = "a conflict tells the head before the last one"
    EMPTY_CONFLICT = "a conflict is told though the head was the expected one"
    EARLY_CONFLICT = "a conflict rests on a publish that then fails"
    REUSED_SEQUENCE = "a sequence is given twice"
    STALE_READ = "who asks is told the head of some time ago"


class Racers:
    """Tasks that publish under conditions and ask, on a register that makes a mistake now and then.

    Each operation takes effect at one instant between its call and its answer.
    """

    def __init__(self, seed: int, mistake: Mistake | None) -> None:
        self.chance = random.Random(seed)
        self.mistake = mistake
        self.heads = [EMPTY]
        self.now = 0.0
        self.made = 0

    @property
    def head(self) -> Head:
        return self.heads[-1]

    def strikes(self, mistake: Mistake) -> bool:
        struck = self.mistake is mistake and self.chance.random() < 0.3
        return struck

    def run(self, count: int) -> list[Operation]:
        """Run operations, some at once."""
        history: list[Operation] = []
        while len(history) < count:
            together = self.chance.randint(1, 4)
            called = [self.tick() for _ in range(together)]
            known = self.head
            done = [(at, self.operate(known)) for at in called]
            history += [Operation(at, inf if isinstance(what, Unknown) else self.tick(), what) for at, what in done]
        return history

    def tick(self) -> float:
        self.now += 1
        return self.now

    def operate(self, known: Head) -> Won | Conflicted | Asked | Unknown:
        if self.chance.random() < 0.15:
            if len(self.heads) > 3 and self.strikes(Mistake.STALE_READ):
                self.made += 1
                return Asked(self.heads[-3])
            return Asked(self.head)
        expect = known if self.chance.random() < 0.8 else self.chance.choice(self.heads)
        if expect != self.head:
            return self.conflict(expect)
        if self.strikes(Mistake.EMPTY_CONFLICT):
            self.made += 1
            return Conflicted(expect, expect)
        if self.strikes(Mistake.EARLY_CONFLICT):
            # The one that it lost to is undone: its own outcome is unknown, and its position is given again.
            self.made += 1
            lost = Conflicted(expect, Head(EPOCH + 1, self.head.sequence + 1))
            return lost
        if self.chance.random() < 0.1:
            if self.chance.random() < 0.5:
                self.store()
            return Unknown(expect)
        return self.win(expect)

    def conflict(self, expect: Head) -> Won | Conflicted:
        if self.strikes(Mistake.TWO_WINNERS):
            self.made += 1
            return Won(expect, self.store())
        if len(self.heads) > 2 and self.strikes(Mistake.OLD_HEAD) and self.heads[-3] != expect:
            self.made += 1
            return Conflicted(expect, self.heads[-3])
        return Conflicted(expect, self.head)

    def win(self, expect: Head) -> Won:
        if self.strikes(Mistake.LOST_UPDATE):
            self.made += 1
            return Won(expect, Head(EPOCH + 2, self.head.sequence + 1))
        if len(self.heads) > 1 and self.strikes(Mistake.REUSED_SEQUENCE):
            self.made += 1
            again = Head(EPOCH, self.head.sequence)
            return Won(expect, again)
        return Won(expect, self.store())

    def store(self) -> Head:
        self.heads.append(Head(EPOCH, self.head.sequence + 1))
        return self.head


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_register_answers_is_linearizable(seed: int) -> None:
    history = Racers(seed, None).run(60)
    order = linearize(history)
    assert order is not None, f"seed {seed}"
    assert {id(one) for one in order} >= {id(one) for one in history if one.answered != inf}


@pytest.mark.parametrize("mistake", Mistake)
def test_each_mistake_is_caught(mistake: Mistake) -> None:
    struck = caught = 0
    for seed in SEEDS:
        racers = Racers(seed, mistake)
        history = racers.run(60)
        # More must come: a mistake at the very end has nobody who could have noticed.
        racers.mistake = None
        history += racers.run(20)
        if racers.made:
            struck += 1
            caught += linearize(history) is None
    assert struck >= 20
    assert caught == struck


def test_an_answer_that_came_first_happened_first() -> None:
    first, second = Head(EPOCH, 1), Head(EPOCH, 2)
    late = [Operation(1, 2, Won(EMPTY, first)), Operation(3, 4, Asked(EMPTY))]
    assert linearize(late) is None
    assert linearize([late[0], Operation(1.5, 4, Asked(EMPTY))]) is not None
    both = [Operation(1, 2, Won(EMPTY, first)), Operation(1, 2, Won(EMPTY, first))]
    assert linearize(both) is None
    assert linearize([Operation(1, 9, Won(first, second)), Operation(2, 3, Won(EMPTY, first))]) is not None


def test_what_has_no_answer_may_have_happened_late_or_never() -> None:
    first = Head(EPOCH, 1)
    unknown = Operation(1, inf, Unknown(EMPTY))
    assert linearize([unknown]) == []
    assert linearize([unknown, Operation(2, 3, Asked(EMPTY)), Operation(4, 5, Asked(first))]) is not None
    assert linearize([unknown, Operation(2, 3, Asked(first)), Operation(4, 5, Asked(EMPTY))]) is None
    assert linearize([unknown, Operation(2, 3, Conflicted(EMPTY, first))]) is not None
    other = Operation(2, 3, Won(EMPTY, first))
    assert linearize([unknown, other, Operation(4, 5, Asked(first))]) is not None
