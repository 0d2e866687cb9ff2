"""What the read buffers of all WebSockets take up together, and who leaves when that is too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.model.errors import error

if TYPE_CHECKING:
    from broker.edge.web.socket import Frames

__all__ = ["Buffers"]


class Buffers:
    """What the read buffers of all WebSockets take up that have grown beyond a usual size.

    A buffer grows with what has arrived of a frame, never by what was declared. When all together are over the bound,
    the one that grew first is ended: whoever sends large messages comes back, and who dribbles them pays.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._grown: dict[Frames, int] = {}

    def note(self, frames: Frames, size: int, limit: int) -> None:
        """A buffer has grown to so many bytes."""
        self.bytes += size - self._grown.get(frames, 0)
        self._grown[frames] = size
        while self.bytes > limit:
            oldest = next(iter(self._grown))
            self.forget(oldest)
            oldest.expel(
                error(
                    "LIMIT",
                    f"read buffers, of all WebSockets: got more than {limit} bytes, limit {limit} bytes",
                    "Send large messages without a pause in them, or raise the limit (limits.partial_bytes_max).",
                )
            )

    def forget(self, frames: Frames) -> None:
        """A buffer is gone."""
        self.bytes -= self._grown.pop(frames, 0)
