"""The shapes of `--shape`, for Locust."""

from __future__ import annotations

import time

from locust import LoadTestShape

from loadtest.stages import users_at


class Shape(LoadTestShape):
    """As many users as `--shape` wants at each moment; `--users`, `--spawn-rate` and `--run-time` are Locust's own."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Return how many users there are to be, and how fast they come; None when the test is over."""
        assert self.runner is not None
        parsed = self.runner.environment.parsed_options
        assert parsed is not None
        users = users_at(
            parsed.shape, time.perf_counter() - self.start_time, int(parsed.num_users or 1), parsed.run_time
        )
        return None if users is None else (users, float(parsed.spawn_rate or 1))
