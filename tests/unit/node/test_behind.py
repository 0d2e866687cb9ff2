"""What is told of a subscription that lags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker.model.levels import Level
from broker.model.profiles import Profile, Profiles
from broker.node.behind import CHANNELS_COUNTED_MAX, describe_behind
from tests.unit.node.test_demotion import SIZE, grant, live, publish, station

if TYPE_CHECKING:
    from broker.node.catchup import Following
    from tests.unit.node.test_catchup import Station

__all__ = ["station"]

SOON_US = 3_000_000


def told(station: Station, following: Following) -> dict[str, Any]:
    assert following in station.catchup.lagging
    return describe_behind(following, station.core, following.since_us + SOON_US)


async def test_messages_are_counted_of_channels_by_name(station: Station) -> None:
    station.core.load(b"s.x")
    following = live(station, b"s.x", b"s.y", credit=2 * SIZE)
    publish(station, b"s.y", 2)
    publish(station, b"s.x", 5)
    behind = told(station, following)
    assert behind == {
        "subscription": 1,
        "filters": ["s.x", "s.y"],
        "behind_groups": 4,
        "behind_messages": 5,
        "behind_s": 3.0,
        "since_s": 3.0,
        "queued_bytes": behind["queued_bytes"],
        "credit": 0,
        "policy": "catchup",
    }
    grant(station, following, 3)
    await station.until(lambda: following.after.get(b"s.x") == 3)
    assert told(station, following)["behind_messages"] == 2


async def test_what_is_not_stored_is_not_counted(station: Station) -> None:
    station.core.load(b"e.x")
    following = live(station, b"s.x", b"e.x", credit=SIZE)
    publish(station, b"s.x", 3)
    station.writer.publish(b"e.x", b"1", b"2")
    station.pipeline.end_turn()
    assert told(station, following)["behind_messages"] == 2


@pytest.mark.parametrize("filters", [[b"s.>"], [b"s.x", b"s.*"]])
async def test_nobody_counts_messages_of_a_pattern(station: Station, filters: list[bytes]) -> None:
    station.core.load(b"s.x")
    following = live(station, *filters, credit=SIZE)
    publish(station, b"s.x", 3)
    behind = told(station, following)
    assert "behind_messages" not in behind
    # Only all there are has a mark: more is not known of so little.
    assert 2 * SIZE < behind["behind_bytes"] <= station.core.course.size_bytes
    before = station.core.course.size_bytes
    station.publish(b"s.x", bytes(60_000))
    grown = station.core.course.size_bytes - before
    assert grown > 60_000
    assert told(station, following)["behind_bytes"] == behind["behind_bytes"] + grown


@pytest.mark.parametrize("channels", [CHANNELS_COUNTED_MAX, CHANNELS_COUNTED_MAX + 1])
async def test_nor_of_many_channels(station: Station, channels: int) -> None:
    names = [b"s.%d" % number for number in range(channels)]
    following = live(station, *names, credit=SIZE)
    publish(station, names[-1], 2)
    behind = told(station, following)
    assert ("behind_messages" in behind) == (channels == CHANNELS_COUNTED_MAX)
    assert ("behind_bytes" in behind) == (channels > CHANNELS_COUNTED_MAX)
    assert behind["filters"] == ["s.0", "s.1", "s.2", "s.3"]


@pytest.mark.parametrize(
    ("filters", "policy"),
    [
        ([b"s.x"], "catchup"),
        ([b"s.x", b"n.x"], None),
        ([b"n.x", b"n.y"], "latest"),
        ([b"s.x", b"gone.x"], "catchup"),
        ([b"s.*"], None),
    ],
)
async def test_the_policy_is_told_when_it_is_one(station: Station, filters: list[bytes], policy: str | None) -> None:
    station.core.load(b"s.x")
    station.core.profiles = Profiles([Profile(b"n.>", slow="latest"), Profile(b"s.>"), Profile(b"gone.>")])
    following = live(station, *filters, credit=SIZE)
    publish(station, filters[0].replace(b"*", b"x"), 2)
    station.core.profiles = Profiles([Profile(b"n.>", Level.SYNCED, slow="latest"), Profile(b"s.>")])
    assert told(station, following).get("policy") == policy
