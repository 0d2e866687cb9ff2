"""Profiles: the policy of the channels that match a pattern.

The profiles of a broker are an ordered list and the first match wins. A channel that none matches is refused; the
shipped default is one profile that matches everything. A change of the list concerns a channel from its next use on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from broker.model.errors import error
from broker.model.levels import Level
from broker.model.names import TOKENS_MAX, check_pattern, covers, display, is_reserved
from broker.model.settings import GIB, KIB, MIB, check_settings, invalid, setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NUMBER_MAX = (1 << 32) - 1
_DAY_S = 24 * 3600
RETENTION_BYTES_MIN = 64 * KIB
"""The smallest bound in bytes: what is kept of a channel is whole chunks, and a chunk has at most so many."""
KEEP_ALL, KEEP_LATEST_PER_KEY = "all", "latest_per_key"
HOLD_NONE, HOLD_CONSUMERS = "none", "consumers"
PUBLISHER_NONE, PUBLISHER_USER = "none", "user"
SLOW_CATCHUP, SLOW_LATEST, SLOW_DROP_OLDEST, SLOW_DISCONNECT = "catchup", "latest", "drop_oldest", "disconnect"


@dataclass(frozen=True, slots=True)
class Profile:
    """The policy of the channels that match one pattern.

    Raises:
        InvalidPattern: the pattern is none.
        ConfigError: INVALID_CONFIG; another value is out of its range.
    """

    SECTION: ClassVar[str] = "profile"

    pattern: bytes = field(
        metadata=setting("The channels that it is for: a name, or a pattern with * and a final >.", reloadable=True)
    )
    durability: Level = field(
        default=Level.SYNCED,
        metadata=setting(
            "What an acknowledgement promises. A change from or to ephemeral begins a new epoch of each channel.",
            choices=(Level.EPHEMERAL.label, Level.ACCEPTED.label, Level.SYNCED.label),
            reloadable=True,
        ),
    )
    shard_tokens: int = field(
        default=2,
        metadata=setting(
            "How many leading tokens decide a channel's shard; a channel keeps the number that it was created with.",
            unit="tokens",
            low=1,
            high=TOKENS_MAX,
            reloadable=True,
        ),
    )
    payload_bytes_max: int = field(
        default=0,
        metadata=setting(
            "Largest payload in these channels, within limits.payload_bytes_max; 0 sets no bound of its own.",
            unit="bytes",
            low=0,
            high=64 * MIB,
            reloadable=True,
        ),
    )
    channels_max: int = field(
        default=0,
        metadata=setting(
            "Channels of this profile; one more is answered TOO_MANY_CHANNELS. 0 sets no bound of its own.",
            unit="channels",
            low=0,
            high=_NUMBER_MAX,
            reloadable=True,
        ),
    )
    new_channels_per_s: int = field(
        default=0,
        metadata=setting(
            "Channels of this profile that may come into being in a second; more is answered LIMIT. 0 sets no bound.",
            unit="channels per second",
            low=0,
            high=_NUMBER_MAX,
            reloadable=True,
        ),
    )

    retention_s: int = field(
        default=0,
        metadata=setting(
            "Age at which messages of these channels are removed; 0 keeps them whatever their age.",
            unit="seconds",
            low=0,
            high=36_525 * _DAY_S,
            reloadable=True,
        ),
    )
    retention_bytes: int = field(
        default=0,
        metadata=setting(
            "What a channel keeps: its newest chunks that hold no more than this together; 0 sets no bound.",
            unit="bytes",
            low=0,
            high=1 << 50,
            reloadable=True,
        ),
    )
    retention_messages: int = field(
        default=0,
        metadata=setting(
            "How many sequences a channel keeps, the newest; 0 sets no bound.",
            unit="messages",
            low=0,
            high=1 << 50,
            reloadable=True,
        ),
    )
    keep: str = field(
        default=KEEP_ALL,
        metadata=setting(
            "What is kept within those bounds: all, or of each key the latest message; messages without a key stay.",
            choices=(KEEP_ALL, KEEP_LATEST_PER_KEY),
            reloadable=True,
        ),
    )
    tombstone_s: int = field(
        default=_DAY_S,
        metadata=setting(
            "With latest_per_key: how long a message with a key and no payload, which deletes its key, is kept itself.",
            unit="seconds",
            low=0,
            high=3_652 * _DAY_S,
            reloadable=True,
        ),
    )
    ids_window_s: int = field(
        default=120,
        metadata=setting(
            "How long a message's id is remembered: another message with that id is not stored again, and is answered "
            "with the position of the first. 0 remembers none. Ephemeral channels refuse ids.",
            unit="seconds",
            low=0,
            high=_DAY_S,
            reloadable=True,
        ),
    )
    ids_max: int = field(
        default=100_000,
        metadata=setting(
            "Among how many of a channel's newest messages an id is remembered; each takes up to 64 bytes of memory.",
            unit="messages",
            low=1,
            high=100_000_000,
            reloadable=True,
        ),
    )
    slow: str = field(
        default=SLOW_CATCHUP,
        metadata=setting(
            "What a subscription gets that falls behind: catchup, everything, as it reads on; latest, of each channel "
            "the newest message; drop_oldest, for ephemeral channels, what a short memory still has; disconnect, "
            "SLOW_CONSUMER. Of ephemeral channels catchup is drop_oldest.",
            choices=(SLOW_CATCHUP, SLOW_LATEST, SLOW_DROP_OLDEST, SLOW_DISCONNECT),
            reloadable=True,
        ),
    )
    publisher: str = field(
        default=PUBLISHER_NONE,
        metadata=setting(
            "What the server writes into each message about who has published it: none, nothing; user, the name that "
            "its publisher has signed in with. No client can write it itself.",
            choices=(PUBLISHER_NONE, PUBLISHER_USER),
            reloadable=True,
        ),
    )
    hold: str = field(
        default=HOLD_NONE,
        metadata=setting(
            "What retention waits for: none, nothing; consumers, that all durable consumers and queues which read a "
            "channel have done what it would take.",
            choices=(HOLD_NONE, HOLD_CONSUMERS),
            reloadable=True,
        ),
    )
    hold_bytes_max: int = field(
        default=GIB,
        metadata=setting(
            "What of a channel may be kept for consumers alone, past its retention; when it is more, publishers of the "
            "channel are answered LIMIT.",
            unit="bytes",
            low=RETENTION_BYTES_MIN,
            high=1 << 50,
            reloadable=True,
        ),
    )

    def __post_init__(self) -> None:
        check_pattern(self.pattern)
        check_settings(self)
        self._check_retention()
        if self.slow == SLOW_DROP_OLDEST and self.durability is not Level.EPHEMERAL:
            raise invalid(
                "profile.slow",
                f"got {SLOW_DROP_OLDEST!r}, expected {SLOW_CATCHUP!r}, {SLOW_LATEST!r} or {SLOW_DISCONNECT!r}: what is "
                "stored is not dropped",
                'Leave it out, or choose durability = "ephemeral".',
            )

    def _check_retention(self) -> None:
        """Refuse what retention cannot do."""
        if self.hold == HOLD_CONSUMERS and self.keep == KEEP_LATEST_PER_KEY:
            raise invalid(
                "profile.hold",
                f"got {HOLD_CONSUMERS!r}, expected {HOLD_NONE!r}: with keep = {KEEP_LATEST_PER_KEY!r} each message is "
                "replaced by the next of its key, whoever has read it",
                "Leave it out; a consumer gets the latest of each key.",
            )
        if 0 < self.retention_bytes < RETENTION_BYTES_MIN:
            raise invalid(
                "profile.retention_bytes",
                f"got {self.retention_bytes} bytes, expected 0 or at least {RETENTION_BYTES_MIN} bytes",
            )
        if self.durability is not Level.EPHEMERAL:
            return
        bounds = {"retention_s": 0, "retention_bytes": 0, "retention_messages": 0}
        defaults = {**bounds, "keep": KEEP_ALL, "hold": HOLD_NONE}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                raise invalid(
                    f"profile.{name}",
                    f"got {value!r}, expected {default!r}: an ephemeral profile stores nothing that could be kept",
                    "Leave it out, or choose another durability.",
                )


def _own_profile() -> Profile:
    own = Profile(b">")
    object.__setattr__(own, "pattern", b"$")  # which is no user's, so that what goes by patterns tells them apart
    return own


OWN = _own_profile()
"""The policy of the broker's own channels, `$…`: synced, and nothing is removed but by the broker itself."""


class Profiles:
    """The ordered profiles of a broker; immutable, shared between threads freely."""

    __slots__ = ("_expression", "_profiles", "ephemeral", "keep", "slow")

    ephemeral: tuple[bytes, ...]
    """The patterns of the ephemeral profiles."""
    keep: frozenset[str]
    """What there is of `Profile.keep` among them."""
    slow: frozenset[str]
    """What there is of `Profile.slow` among them."""

    def __init__(self, profiles: Iterable[Profile] = ()) -> None:
        """Keep profiles in their order; none means the shipped default, `>` with `synced`.

        Raises:
            ConfigError: INVALID_CONFIG; a profile can never be the first match because an earlier one covers it.
        """
        self._profiles = tuple(profiles) or (Profile(b">"),)
        self.ephemeral = tuple(each.pattern for each in self._profiles if each.durability is Level.EPHEMERAL)
        self.keep = frozenset(each.keep for each in self._profiles)
        self.slow = frozenset(each.slow for each in self._profiles)
        # Each channel that comes into memory is resolved: one scan for all patterns tells the first that matches.
        self._expression = re.compile(rb"(?!\$)(?:%b)" % b"|".join(map(_expression, self._profiles)), re.DOTALL)
        for index, profile in enumerate(self._profiles):
            for earlier, wider in enumerate(self._profiles[:index]):
                if covers(wider.pattern, profile.pattern):
                    raise invalid(
                        f"profiles[{index}].pattern",
                        f"{display(profile.pattern)} is never reached: profiles[{earlier}], {display(wider.pattern)}, "
                        "matches all of it first",
                        "the first match wins: put the narrower pattern first",
                    )

    def resolve(self, name: bytes) -> Profile:
        """Return the profile of a channel: the first whose pattern matches, or `OWN` for one of the broker's own.

        Args:
            name: a validated channel's name, or a reserved one.

        Raises:
            RequestError: NO_PROFILE; none matches.

        Linear in the number of profiles at worst; a caller keeps the answer with the channel.
        """
        matched = self._expression.fullmatch(name)
        if matched is not None:
            return self._profiles[(matched.lastindex or 0) - 1]
        if is_reserved(name):
            return OWN
        raise error("NO_PROFILE", f"channel {display(name)}: none of {len(self._profiles)} profiles matches it")

    def __iter__(self) -> Iterator[Profile]:
        return iter(self._profiles)

    def __len__(self) -> int:
        return len(self._profiles)

    def __getitem__(self, index: int) -> Profile:
        return self._profiles[index]

    def __eq__(self, other: object) -> bool:
        return self._profiles == other._profiles if isinstance(other, Profiles) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._profiles)

    def __repr__(self) -> str:
        return f"Profiles({list(self._profiles)!r})"


def _expression(profile: Profile) -> bytes:
    """Return a group that matches the names that the profile's pattern does."""
    pattern = re.escape(profile.pattern).replace(rb"\*", rb"[^.]+")
    return b"(" + (pattern[:-1] + b".+" if pattern.endswith(b">") else pattern) + b")"
