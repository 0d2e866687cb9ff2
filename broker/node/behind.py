"""Who is behind: one subscription that lags, as the operation `lagging` tells of it (specification.md §13).

It looks at what is in memory only, and at a bounded part of that: hundreds of readers are told of in one answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.model.errors import RequestError
from broker.model.levels import Level

if TYPE_CHECKING:
    from broker.core.sequencer import Sequencer
    from broker.node.catchup import Following

__all__ = ["describe_behind"]

FILTERS_SHOWN = 4
CHANNELS_COUNTED_MAX = 16


def describe_behind(following: Following, core: Sequencer, now_us: int) -> dict[str, object]:
    """Say which it is, how far it is behind, and since when.

    Args:
        following: A subscription that lags.
        core: Where its channels are.
        now_us: Broker time.
    """
    subscription = following.subscription
    told: dict[str, object] = {
        "subscription": subscription.number,
        "filters": [each.decode() for each in (following.literals + following.patterns)[:FILTERS_SHOWN]],
        "behind_groups": max(core.applied_number - following.reached, 0),
        "behind_s": max(now_us - following.reached_us, 0) / 1e6,
        "since_s": max(now_us - following.since_us, 0) / 1e6,
        "queued_bytes": subscription.outbox.queued,
        "credit": max(subscription.credit, 0),
    }
    if following.place is None and len(following.literals) <= CHANNELS_COUNTED_MAX:
        told["behind_messages"] = _messages(following, core)
    else:
        told["behind_bytes"] = core.course.since(following.reached)
    policies = _policies(following, core)
    if len(policies) == 1:
        told["policy"] = policies.pop()
    return told


def _messages(following: Following, core: Sequencer) -> int:
    """Count what its channels have stored beyond what it got; what is in a pending group counts as well."""
    count = 0
    for name, after in following.after.items():
        info = core.tails.info(name)
        if info is not None and info[1] != Level.EPHEMERAL:
            count += max(info[6] - 1 - after, 0)
    return count


def _policies(following: Following, core: Sequencer) -> set[str]:
    """Return what the profiles of its channels want for it; of a pattern, what any profile wants."""
    profiles = core.profiles
    if following.patterns or len(profiles.slow) == 1:
        return set(profiles.slow)
    found = set()
    for name in following.literals[:FILTERS_SHOWN]:
        try:
            found.add(profiles.resolve(name).slow)
        except RequestError:
            continue  # profiles have changed, and none is for it any more
    return found
