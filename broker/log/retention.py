"""What retention takes: which sequences of which channels a policy no longer keeps.

This decides and does nothing: a plan is proposals (channel, new first sequence). The owner of the journal turns them
into TRIM entries of ordinary groups, so that readers, replay and the archive see one order of things; the archive
applies them when it takes in the segment that holds them.

Both kinds of bounds are found by walking the archive's commit index, oldest group first, each with a cursor of its own:

    ages     up to the first group that is younger than the age; what the walk meets is too old, as group times ascend
    bounds   up to the end; each channel that the walk meets has grown, and is held against its bytes and messages

A cursor's name carries a fingerprint of all policies: after a change of any the walk begins anew, and finds channels
that nobody writes to any more. A cursor is stored when the trims of its step are in the journal, never before. A step
that is repeated proposes the same again, and a trim that has been made is not proposed twice. What consumers hold is
proposed all the same: whoever holds it back keeps the cursor where it was, and lets the walk go on from `Held.walked`.

Invariants: a proposal is past the channel's first and never past its next sequence; nothing is proposed that a policy
keeps, as far as `now_us` is right, which is for the caller to see to.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from broker.model.levels import Level
from broker.model.names import matches
from broker.model.profiles import HOLD_CONSUMERS, KEEP_LATEST_PER_KEY, Profile
from broker_native.crc32c import crc32c_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

__all__ = [
    "NOTHING_HELD",
    "ChannelState",
    "Held",
    "IndexedGroup",
    "Planner",
    "Policies",
    "Policy",
    "Step",
    "View",
    "bounded_first",
]

SECOND_US = 1_000_000
STEP_CHUNKS_MAX = 65_536
"""Chunks of the index that a step looks at: with a look at each one's channel, below a second."""
ROTATE_SHARE = 4
"""An active segment is given to the archiver when its oldest group has lived this part of the shortest age."""
ROTATE_US_MIN, ROTATE_US_MAX = SECOND_US, 3600 * SECOND_US


@dataclass(frozen=True, slots=True)
class Policy:
    """What the channels of a profile keep; 0 is no bound.

    Attributes:
        age_us: Records of groups this old or older are removed, microseconds.
        bytes: The newest chunks that hold no more than this together stay, and the newest one in any case.
        messages: So many sequences stay, the newest.
        latest_per_key: Of each key only the latest record stays.
        tombstone_us: How long a record that deletes its key stays itself, microseconds.
        hold_bytes: What may be kept past these bounds for consumers that have not done it; 0: nobody is waited for.
    """

    age_us: int = 0
    bytes: int = 0
    messages: int = 0
    latest_per_key: bool = False
    tombstone_us: int = 0
    hold_bytes: int = 0

    @property
    def bounded(self) -> bool:
        """Whether it bounds bytes or messages."""
        return bool(self.bytes or self.messages)


_KEEPS_ALL = Policy()


class Policies:
    """Which policy a channel has. Immutable; shared between threads, and handed to other processes as plain values.

    Args:
        rules: (pattern, policy) in their order; the first that matches wins.
    """

    __slots__ = ("_rules", "ages_us", "bounded", "compacted", "fingerprint", "holds", "tombstones_us")

    def __init__(self, rules: Iterable[tuple[bytes, Policy]] = ()) -> None:
        self._rules = tuple(rules)
        self.ages_us = tuple(sorted({policy.age_us for _, policy in self._rules if policy.age_us}))
        self.bounded = any(policy.bounded for _, policy in self._rules)
        self.holds = any(policy.hold_bytes for _, policy in self._rules)
        self.compacted = any(policy.latest_per_key for _, policy in self._rules)
        self.tombstones_us = tuple(sorted({policy.tombstone_us for _, policy in self._rules if policy.latest_per_key}))
        self.fingerprint = crc32c_of(json.dumps(self.pack()).encode())

    @classmethod
    def of(cls, profiles: Iterable[Profile]) -> Policies:
        """Return the policies of a broker's profiles, in their order."""
        return cls((profile.pattern, policy_of(profile)) for profile in profiles)

    def __call__(self, name: bytes) -> Policy | None:
        """Return a channel's policy, or None when it keeps everything. Linear in the number of profiles."""
        if not self.active:
            return None
        for pattern, policy in self._rules:
            if matches(pattern, name):
                return None if policy == _KEEPS_ALL else policy
        return None

    @property
    def active(self) -> bool:
        """Whether anything is ever removed."""
        return bool(self.ages_us) or self.bounded or self.compacted

    @property
    def rotate_us(self) -> int:
        """How old the active segment's oldest group may get before it is sealed early, microseconds; 0 for any age.

        What is not archived cannot be trimmed by its age, so this is how late retention may be on a quiet broker:
        a quarter of the shortest age, at least a second, at most an hour.
        """
        if not self.active:
            return 0
        shortest_us = self.ages_us[0] if self.ages_us else ROTATE_US_MAX * ROTATE_SHARE
        return max(ROTATE_US_MIN, min(ROTATE_US_MAX, shortest_us // ROTATE_SHARE))

    def pack(self) -> list[list[object]]:
        """Return plain values that JSON can hold; `unpack` reads them."""
        return [[pattern.decode(), asdict(policy)] for pattern, policy in self._rules]

    @classmethod
    def unpack(cls, packed: Iterable[Sequence[object]]) -> Policies:
        """Return the policies that `pack` wrote."""
        return cls((str(pattern).encode(), Policy(**values)) for pattern, values in packed)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return self._rules == other._rules if isinstance(other, Policies) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._rules)


def policy_of(profile: Profile) -> Policy:
    """Return what a profile says of retention."""
    if profile.durability is Level.EPHEMERAL:
        return _KEEPS_ALL
    latest = profile.keep == KEEP_LATEST_PER_KEY
    removes = profile.retention_s or profile.retention_bytes or profile.retention_messages
    return Policy(
        age_us=profile.retention_s * SECOND_US,
        bytes=profile.retention_bytes,
        messages=profile.retention_messages,
        latest_per_key=latest,
        tombstone_us=profile.tombstone_s * SECOND_US if latest else 0,
        hold_bytes=profile.hold_bytes_max if removes and profile.hold == HOLD_CONSUMERS else 0,
    )


# -- what is planned with ----------------------------------------------------------------------------------------------


class IndexedGroup(NamedTuple):
    """A group of the archive's commit index.

    Attributes:
        group: its number.
        time_us: when it was closed; no record in it is younger.
        chunks: (channel id, first sequence, count) each.
    """

    group: int
    time_us: int
    chunks: Sequence[tuple[int, int, int]]


class ChannelState(NamedTuple):
    """What the archive says of a channel: its name, its oldest and its next sequence, and its chunks' bytes."""

    name: bytes
    first: int
    next: int
    bytes: int


class View(Protocol):
    """One consistent view of the archive."""

    def index(self, after_group: int, chunks_max: int) -> list[IndexedGroup]:
        """Return groups past one, ascending: about `chunks_max` chunks, at least one group if there is any."""

    def channels(self, ids: list[int]) -> list[ChannelState | None]:
        """Return the state of each channel, None where there is none any more. The ids ascend."""

    def chunk_spans(self, channel: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first sequence, count, bytes) of a channel's chunks, oldest first."""


@dataclass(slots=True)
class Step:
    """What a step found.

    Attributes:
        proposals: new first sequences by channel name.
        cursors: where each walk has got, to be stored once the proposals are trims in the journal.
        more: whether a walk has not reached its end.
        states: of the channels among the proposals that consumers may hold, and of those that were asked about.
    """

    proposals: dict[bytes, int]
    cursors: dict[bytes, int]
    more: bool
    states: list[ChannelState] = field(default_factory=list)

    def pack(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; `unpack` reads them."""
        proposals = [[name.decode(), first] for name, first in self.proposals.items()]
        states = [[state.name.decode(), *state[1:]] for state in self.states]
        return {"proposals": proposals, "cursors": pack_cursors(self.cursors), "more": self.more, "states": states}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Step:
        """Return the step that `pack` wrote."""
        proposals = {name.encode(): first for name, first in packed["proposals"]}
        states = [ChannelState(name.encode(), *rest) for name, *rest in packed["states"]]
        return cls(proposals, unpack_cursors(packed["cursors"]), packed["more"], states)


class Held(NamedTuple):
    """What a step needs to know of what consumers hold.

    Attributes:
        walked: where each walk goes on that has come further than its cursor: what it has passed is not all taken.
        channels: ids of channels that are held, whose states are asked for; ascending.
    """

    walked: Mapping[bytes, int]
    channels: Sequence[int]

    def pack(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; `unpack` reads them."""
        return {"walked": pack_cursors(self.walked), "channels": list(self.channels)}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Held:
        """Return what `pack` wrote."""
        return cls(unpack_cursors(packed["walked"]), packed["channels"])


NOTHING_HELD = Held({}, ())


def pack_cursors(cursors: Mapping[bytes, int]) -> dict[str, int]:
    """Return cursors as JSON can hold them."""
    return {name.decode(): group for name, group in cursors.items()}


def unpack_cursors(packed: Mapping[str, int]) -> dict[bytes, int]:
    """Return the cursors that `pack_cursors` wrote."""
    return {name.encode(): group for name, group in packed.items()}


def bounded_first(state: ChannelState, policy: Policy, spans: Iterable[tuple[int, int, int]]) -> int:
    """Return the first sequence that a channel's bounds of bytes and messages leave.

    Args:
        state: of the channel.
        policy: its policy.
        spans: (first sequence, count, bytes) of its chunks, oldest first; looked at only as far as needed.
    """
    first = state.first
    if policy.messages:
        first = max(first, state.next - policy.messages)
    if policy.bytes and state.bytes > policy.bytes:
        left = state.bytes
        for begin, count, size in spans:
            if left <= policy.bytes or begin + count >= state.next:
                break
            left -= size
            first = max(first, begin + count)
    return first


class Planner:
    """Plans by walking an archive.

    Args:
        policies: of the channels.

    It holds no state but the policies: what it needs to know of earlier steps is in the cursors.
    """

    def __init__(self, policies: Policies) -> None:
        self.policies = policies
        self._ages = {self._cursor(f"age {age_us}"): age_us for age_us in policies.ages_us}
        self._bounds = self._cursor("bounds")

    def _cursor(self, walk: str) -> bytes:
        return f"{walk} {self.policies.fingerprint:08x}".encode()

    @property
    def cursor_names(self) -> set[bytes]:
        """The cursors in use; one that is not among them belongs to policies that have changed."""
        return {*self._ages, *([self._bounds] if self.policies.bounded else [])}

    def step(
        self,
        view: View,
        cursors: Mapping[bytes, int],
        now_us: int,
        chunks_max: int = STEP_CHUNKS_MAX,
        channels: Sequence[int] = (),
    ) -> Step:
        """Go on with every walk by a bounded step.

        Args:
            view: of the archive.
            cursors: the group up to which each walk has come, by name; one that is missing begins at the beginning.
            now_us: the time by which ages are judged; never ahead of what is true.
            chunks_max: about how many chunks of the index each walk looks at.
            channels: ids of those whose states are asked for, ascending.
        """
        step = Step({}, {}, more=False)
        step.states += [state for _, state in self._states(view, channels)]
        for cursor, age_us in self._ages.items():
            self._walk_age(view, cursor, cursors.get(cursor, 0), age_us, now_us, chunks_max, step)
        if self.policies.bounded:
            self._walk_bounds(view, cursors.get(self._bounds, 0), chunks_max, step)
        return step

    def _walk_age(
        self, view: View, cursor: bytes, at: int, age_us: int, now_us: int, chunks_max: int, step: Step
    ) -> None:
        ends: dict[int, int] = {}
        groups = view.index(at, chunks_max)
        young = False
        for group in groups:
            young = group.time_us > now_us - age_us
            if young:
                break
            for channel, first, count in group.chunks:
                ends[channel] = max(ends.get(channel, 0), first + count)
            at = group.group
        step.cursors[cursor] = at
        step.more |= bool(groups) and not young
        for channel, state in self._states(view, ends):
            policy = self.policies(state.name)
            if policy is not None and policy.age_us == age_us:
                _propose(step, state, ends[channel], policy)

    def _walk_bounds(self, view: View, at: int, chunks_max: int, step: Step) -> None:
        groups = view.index(at, chunks_max)
        step.cursors[self._bounds] = groups[-1].group if groups else at
        step.more |= bool(groups)
        met = {channel for group in groups for channel, _, _ in group.chunks}
        for channel, state in self._states(view, met):
            policy = self.policies(state.name)
            if policy is not None and policy.bounded:
                _propose(step, state, bounded_first(state, policy, view.chunk_spans(channel)), policy)

    def _states(self, view: View, ids: Iterable[int]) -> Iterator[tuple[int, ChannelState]]:
        ordered = sorted(ids)
        for channel, state in zip(ordered, view.channels(ordered), strict=True):
            if state is not None:
                yield channel, state


def _propose(step: Step, state: ChannelState, first: int, policy: Policy) -> None:
    first = min(first, state.next)
    if first > max(state.first, step.proposals.get(state.name, 0)):
        if policy.hold_bytes and state.name not in step.proposals:
            step.states.append(state)
        step.proposals[state.name] = first
