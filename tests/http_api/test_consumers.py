"""What HTTP tells of consumers and work queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker import connect

if TYPE_CHECKING:
    from tests.contract.homes import Server
    from tests.http_api.client import Http


async def test_queue_is_told(served: Server, http: Http) -> None:
    async with connect(served.tcp_url) as bus:
        for number in range(3):
            await bus.create_queue(f"q.{number}", "s.jobs", attempts_max=3, dead_letter="s.dead")
        await bus.publish_many("s.jobs", [b"a", b"b"])
        told = http.get("/v1/consumers/q.0").body
    assert {name: told[name] for name in ("name", "filters", "mode", "attempts_max", "dead_letter", "paused")} == {
        "name": "q.0",
        "filters": ["s.jobs"],
        "mode": "shared",
        "attempts_max": 3,
        "dead_letter": "s.dead",
        "paused": False,
    }
    assert "s.jobs" in told["positions"]
    first = http.get("/v1/consumers", limit=2).body
    rest = http.get("/v1/consumers", limit=2, **first["next"]).body
    assert [row["name"] for page in (first, rest) for row in page["consumers"]] == ["q.0", "q.1", "q.2"]
    assert rest["next"] is None
