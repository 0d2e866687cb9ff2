"""Retention plans: never what a policy keeps, everything else after a full cycle, and nothing twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log.retention import (
    ROTATE_US_MAX,
    SECOND_US,
    ChannelState,
    IndexedGroup,
    Planner,
    Policies,
    Policy,
    Step,
    bounded_first,
)
from broker.model.levels import Level
from broker.model.profiles import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY_US = 86_400 * SECOND_US
NOW_US = 1_800_000_000 * SECOND_US


@dataclass
class Chunk:
    """A chunk of the model: `count` sequences from `first`, of a group of some time."""

    first: int
    count: int
    size: int
    time_us: int

    @property
    def next(self) -> int:
        return self.first + self.count


@dataclass
class Archive:
    """A whole archive in plain lists: what was ever written, what is gone, and the commit index."""

    names: dict[int, bytes] = field(default_factory=dict)
    chunks: dict[int, list[Chunk]] = field(default_factory=dict)
    firsts: dict[int, int] = field(default_factory=dict)
    groups: list[IndexedGroup] = field(default_factory=list)
    cursors: dict[bytes, int] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    looked_at: int = 0

    def write(self, time_us: int, sizes: dict[bytes, tuple[int, int]]) -> None:
        """Archive one group: (count, bytes) by channel."""
        placed = []
        for name, (count, size) in sizes.items():
            channel = next((number for number, known in self.names.items() if known == name), len(self.names) + 1)
            self.names[channel] = name
            chunks = self.chunks.setdefault(channel, [])
            first = chunks[-1].next if chunks else 1
            chunks.append(Chunk(first, count, size, time_us))
            placed.append((channel, first, count))
        self.groups.append(IndexedGroup(self.groups[-1].group + 3 if self.groups else 5, time_us, placed))

    def next_of(self, channel: int) -> int:
        return self.chunks[channel][-1].next

    def first_of(self, channel: int) -> int:
        return self.firsts.get(channel, 1)

    # what a planner sees

    def index(self, after_group: int, chunks_max: int) -> list[IndexedGroup]:
        found: list[IndexedGroup] = []
        for group in self.groups:
            if group.group > after_group:
                found.append(group)
                self.looked_at += 1
                chunks_max -= len(group.chunks)
                if chunks_max <= 0:
                    break
        return found

    def channels(self, ids: list[int]) -> list[ChannelState | None]:
        assert ids == sorted(ids)
        return [self.state(channel) for channel in ids]

    def state(self, channel: int) -> ChannelState | None:
        if channel in self.dropped:
            return None
        size = sum(chunk.size for chunk in self.kept(channel))
        return ChannelState(self.names[channel], self.first_of(channel), self.next_of(channel), size)

    def kept(self, channel: int) -> list[Chunk]:
        return [chunk for chunk in self.chunks[channel] if chunk.next > self.first_of(channel)]

    def chunk_spans(self, channel: int) -> Iterator[tuple[int, int, int]]:
        for chunk in self.kept(channel):
            yield chunk.first, chunk.count, chunk.size

    # what an owner does with a plan

    def apply(self, step: Step) -> None:
        by_name = {name: channel for channel, name in self.names.items()}
        for name, first in step.proposals.items():
            channel = by_name[name]
            assert self.first_of(channel) < first <= self.next_of(channel)
            self.firsts[channel] = first
        self.cursors.update(step.cursors)

    def cycle(self, planner: Planner, now_us: int, chunks_max: int = 3) -> dict[bytes, int]:
        """Plan and apply until no walk has more; answers all that was proposed."""
        proposed: dict[bytes, int] = {}
        for _ in range(2 * len(self.groups) + 2):
            step = planner.step(self, self.cursors, now_us, chunks_max)
            self.apply(step)
            proposed |= step.proposals
            if not step.more:
                return proposed
        raise AssertionError("a walk does not end")


# -- the model ---------------------------------------------------------------------------------------------------------

POLICIES = Policies(
    [
        (b"all.>", Policy()),
        (b"age.>", Policy(age_us=DAY_US)),
        (b"few.>", Policy(messages=5)),
        (b"mix.>", Policy(age_us=7 * DAY_US, bytes=700, messages=40)),
        (b"small.>", Policy(bytes=300)),
    ]
)
NAMES = [b"all.a", b"age.a", b"age.b", b"few.a", b"mix.a", b"mix.b", b"small.a", b"none.a"]

histories = st.lists(
    st.tuples(
        st.sampled_from([0, 1, SECOND_US, DAY_US // 3, DAY_US, 5 * DAY_US]),
        st.dictionaries(
            st.sampled_from(NAMES), st.tuples(st.integers(1, 9), st.integers(60, 400)), min_size=1, max_size=4
        ),
    ),
    max_size=25,
)


def expected_first(archive: Archive, channel: int, policy: Policy | None, now_us: int) -> int:
    """Return the first sequence that a policy leaves, record by record."""
    first = 1
    if policy is None:
        return first
    chunks = archive.chunks[channel]
    if policy.age_us:
        first = max([first, *(chunk.next for chunk in chunks if chunk.time_us <= now_us - policy.age_us)])
    if policy.messages:
        first = max(first, archive.next_of(channel) - policy.messages)
    if policy.bytes:
        # The newest chunks within the bound; what of an older one is gone already counts whole.
        left, total = len(chunks) - 1, chunks[-1].size
        while left and total + chunks[left - 1].size <= policy.bytes:
            left -= 1
            total += chunks[left].size
        first = max(first, chunks[left].first)
    return first


@settings(deadline=None)
@given(histories, st.integers(0, 30), st.integers(1, 7))
def test_exactly_what_no_policy_keeps_is_proposed(
    history: list[tuple[int, dict[bytes, tuple[int, int]]]], cut: int, chunks_max: int
) -> None:
    archive, planner = Archive(), Planner(POLICIES)
    now_us = NOW_US
    for index, (later_us, sizes) in enumerate(history):
        now_us += later_us
        archive.write(now_us, sizes)
        if index == cut:
            archive.cycle(planner, now_us, chunks_max)
    archive.cycle(planner, now_us, chunks_max)
    for channel, name in archive.names.items():
        assert archive.first_of(channel) == expected_first(archive, channel, POLICIES(name), now_us), name
    assert archive.cycle(planner, now_us, chunks_max) == {}


@pytest.mark.parametrize("planted", ["a second early", "one too many", "the newest chunk too"])
def test_the_model_finds_planted_mistakes(planted: str) -> None:
    archive = Archive()
    for _ in range(9):
        archive.write(NOW_US, {b"few.a": (2, 100), b"small.a": (1, 200), b"age.a": (1, 100)})
    archive.cycle(Planner(POLICIES), NOW_US + DAY_US)
    by_name = {name: channel for channel, name in archive.names.items()}
    wrong = {"a second early": b"age.a", "one too many": b"few.a", "the newest chunk too": b"small.a"}[planted]
    now_us = NOW_US + DAY_US - (planted == "a second early")
    archive.firsts[by_name[wrong]] += planted != "a second early"
    assert archive.first_of(by_name[wrong]) > expected_first(archive, by_name[wrong], POLICIES(wrong), now_us)


def test_a_step_is_bounded_and_the_next_one_goes_on() -> None:
    archive, planner = Archive(), Planner(Policies([(b">", Policy(age_us=DAY_US))]))
    for _ in range(100):
        archive.write(NOW_US, {b"a": (1, 100), b"b": (1, 100)})
    step = planner.step(archive, {}, NOW_US + DAY_US, chunks_max=20)
    assert (step.proposals, step.more) == ({b"a": 11, b"b": 11}, True)
    assert archive.looked_at == 10
    again = planner.step(archive, {}, NOW_US + DAY_US, chunks_max=20)
    assert again == step  # nothing was stored, so the same is proposed again
    assert planner.step(archive, step.cursors, NOW_US + DAY_US, chunks_max=20).proposals == {b"a": 21, b"b": 21}


def test_what_is_too_young_is_met_again() -> None:
    archive, planner = Archive(), Planner(Policies([(b">", Policy(age_us=DAY_US))]))
    archive.write(NOW_US, {b"a": (3, 100)})
    assert archive.cycle(planner, NOW_US + DAY_US - 1) == {}
    assert archive.cycle(planner, NOW_US + DAY_US) == {b"a": 4}


def test_a_change_of_policy_finds_silent_channels() -> None:
    archive = Archive()
    for _ in range(10):
        archive.write(NOW_US, {b"a": (1, 100)})
    first = Planner(Policies([(b"b", Policy(age_us=DAY_US, messages=3)), (b">", Policy())]))
    assert archive.cycle(first, NOW_US + DAY_US) == {}
    second = Planner(Policies([(b"a", Policy(age_us=DAY_US, messages=3)), (b">", Policy())]))
    assert first.cursor_names.isdisjoint(second.cursor_names)
    assert archive.cycle(second, NOW_US) == {b"a": 8}
    assert archive.cycle(second, NOW_US + DAY_US) == {b"a": 11}


def test_a_dropped_channel_is_passed_over() -> None:
    archive, planner = Archive(), Planner(Policies([(b">", Policy(age_us=DAY_US, messages=1))]))
    archive.write(NOW_US, {b"a": (3, 100), b"b": (3, 100)})
    archive.dropped.add(1)
    assert archive.cycle(planner, NOW_US + DAY_US) == {b"b": 4}


def test_the_newest_chunk_stays_whatever_its_size() -> None:
    state = ChannelState(b"a", 1, 9, 1_000_000)
    assert bounded_first(state, Policy(bytes=1), [(1, 4, 500_000), (5, 4, 500_000)]) == 5
    assert bounded_first(state, Policy(bytes=1, messages=2), [(1, 8, 1_000_000)]) == 7
    assert bounded_first(state, Policy(bytes=1_000_000), iter(())) == 1


def test_the_first_pattern_decides_and_what_none_matches_is_kept() -> None:
    assert POLICIES(b"age.x") == Policy(age_us=DAY_US)
    assert POLICIES(b"all.x") is None
    assert POLICIES(b"none") is None
    assert Policies()(b"a") is None


def test_policies_cross_to_another_process() -> None:
    other = Policies.unpack(json.loads(json.dumps(POLICIES.pack())))
    assert other == POLICIES
    assert hash(other) == hash(POLICIES)
    assert Planner(other).cursor_names == Planner(POLICIES).cursor_names
    assert (POLICIES == 5) is False


def test_a_step_crosses_to_another_process() -> None:
    step = Step({b"a.b": 4}, {b"age 5 00000000": 1 << 60}, more=True)
    assert Step.unpack(json.loads(json.dumps(step.pack()))) == step


def test_policies_of_profiles() -> None:
    profiles = [
        Profile(b"live.>", Level.EPHEMERAL),
        Profile(b"state.>", keep="latest_per_key", tombstone_s=60),
        Profile(b">", retention_s=9, retention_bytes=1 << 20, retention_messages=7),
    ]
    policies = Policies.of(profiles)
    assert policies(b"live.a") is None
    assert policies(b"state.a") == Policy(latest_per_key=True, tombstone_us=60 * SECOND_US)
    assert policies(b"a") == Policy(9 * SECOND_US, 1 << 20, 7)
    assert (policies.ages_us, policies.bounded, policies.compacted) == ((9 * SECOND_US,), True, True)
    assert not Policies.of([Profile(b">")]).active


@pytest.mark.parametrize(
    ("policy", "rotate_us"),
    [
        (Policy(), 0),
        (Policy(messages=1), ROTATE_US_MAX),
        (Policy(age_us=SECOND_US), SECOND_US),
        (Policy(age_us=8 * SECOND_US), 2 * SECOND_US),
        (Policy(age_us=30 * DAY_US), ROTATE_US_MAX),
    ],
)
def test_a_quiet_segment_is_sealed_in_time(policy: Policy, rotate_us: int) -> None:
    assert Policies([(b">", policy)]).rotate_us == rotate_us
