"""How many users there are at each moment of a shape. Pure. The number that is asked for is the most there will be."""

from __future__ import annotations

from typing import Final

RAMP_STEPS: Final = 10
SPIKE_SHARE: Final = 4
"""Before and after a spike there is so small a part of the users."""
SOAK_RAMP_S: Final = 30.0
OPEN_END_S: Final = 60.0
"""How long ramps and spikes take in a test without an end; the last stage then lasts."""


def users_at(shape: str, elapsed_s: float, users: int, run_time_s: float | None) -> int | None:
    """Return how many users there are, or None when the test is over.

    Args:
        shape: `steady` has all from the beginning; `soak` has them after a gentle start; `ramp` adds a tenth at a time;
            `spike` has a quarter, all of them in the middle third, and a quarter again.
        elapsed_s: since the beginning.
        users: the most, from 1.
        run_time_s: of the test; None for one without an end.
    """
    if run_time_s is not None and elapsed_s >= run_time_s:
        return None
    whole_s = run_time_s or OPEN_END_S
    if shape == "ramp":
        return max(1, users * min(RAMP_STEPS, int(elapsed_s / whole_s * RAMP_STEPS) + 1) // RAMP_STEPS)
    if shape == "spike":
        return users if whole_s / 3 <= elapsed_s < whole_s * 2 / 3 else max(1, users // SPIKE_SHARE)
    if shape == "soak":
        ramp_s = min(SOAK_RAMP_S, whole_s / 10)
        return max(1, users * min(RAMP_STEPS, int(elapsed_s / ramp_s * RAMP_STEPS) + 1) // RAMP_STEPS)
    return users


def is_level(shape: str) -> bool:
    """Whether a shape has a level part, of which the mean rate is judged; of others it is the best stretch."""
    return shape in ("steady", "soak")
