"""How fast a crowd is let in: so fast that those who are in do not notice, and who would wait too long is told.

All clients of a server that was away come back at once. What each of them costs the loop (a socket, a handshake, what
it subscribes to) is little, and what all of them cost is seconds in which nobody else is served. So connections are
taken in by turns, a few in each; how many is found out by what is to be protected: when a turn comes late, the loop was
busy for so long, and the next turns take fewer. A floor keeps the crowd moving on a server that is late all the time.

Pure: times come as arguments, counts go out. Nothing here knows a socket.
"""

from __future__ import annotations

TURN_S = 0.001
"""Between two turns while connections wait. A loop's timers know no less."""
LATE_S_LOW = 0.001
"""A turn that is no later lets the next ones take one more…"""
LATE_S_HIGH = 0.002
"""…and one that is later halves them."""
WIDTH_BEGIN = 4
WIDTH_MAX = 16
"""Connections that one turn takes at most: about half a millisecond of them."""
FLOOR_PER_S = 500
"""However late the loop is, so many are let in."""
REFUSALS_A_PLACE = 4
"""Refusals that cost the loop as much as one connection that is let in."""
WAIT_S_MAX = 8.0
"""Who would wait longer is refused: a client gives up after ten seconds or so, and does not know when to come back."""
RATE_BEGIN_PER_S = 1_000.0
RATE_WINDOW_S = 0.1
HINT_MS_MIN = 1_000
HINT_MS_MAX = 30_000
HINT_STEP_MS = 500
REFUSED_PER_S = 500
"""Who is refused for want of room comes back so that about as many do each second, however many they are."""


class Admission:
    """The pace of one listener.

    Args:
        now_s: The time; any clock that only goes forward.

    Attributes:
        width: Connections that the next turn takes.
        rate_per_s: How many were let in lately, a second, while others waited.
        admitted, refused: how many, ever.
    """

    def __init__(self, now_s: float) -> None:
        self.width = WIDTH_BEGIN
        self.rate_per_s = RATE_BEGIN_PER_S
        self.admitted = 0
        self.refused = 0
        self._turned_s = now_s
        self._window_s = now_s
        self._window_admitted = 0
        self._second_s = now_s
        self._second_refused = 0

    def begin(self, now_s: float) -> int:
        """Connections have come and nobody waited before them. Returns how many to take."""
        self._turned_s = self._window_s = now_s
        self._window_admitted = self.admitted
        return self.width

    def turn(self, now_s: float, due_s: float) -> int:
        """It is the turn of those who wait.

        Args:
            now_s: The time.
            due_s: When this turn should have come.

        Returns:
            How many to take, at least 1.
        """
        late_s = now_s - due_s
        if late_s > LATE_S_HIGH:
            self.width = max(1, self.width // 2)
        elif late_s <= LATE_S_LOW:
            self.width = min(WIDTH_MAX, self.width + 1)
        floor = int((now_s - self._turned_s) * FLOOR_PER_S)
        self._turned_s = now_s
        if now_s - self._window_s >= RATE_WINDOW_S:
            self.rate_per_s = (self.admitted - self._window_admitted) / (now_s - self._window_s)
            self._window_s, self._window_admitted = now_s, self.admitted
        return max(self.width, min(floor, WIDTH_MAX))

    def waiting_max(self) -> int:
        """Return how many may wait: more would wait too long. In hundreds, for people."""
        return int(max(self.rate_per_s, FLOOR_PER_S) * WAIT_S_MAX / 100) * 100

    def wait_ms(self, waiting: int) -> int:
        """Return when one who is refused because so many wait is to come back, milliseconds.

        As if the crowd were let in at a good pace: where it begins, the loop is busy with what it left behind.
        """
        return hint_ms(1000 * waiting / max(self.rate_per_s, RATE_BEGIN_PER_S))

    def room_ms(self, now_s: float) -> int:
        """One is refused for want of room: returns when it is to come back, milliseconds.

        The more are refused the later each comes, so that refusing them never becomes what the server does.
        """
        if now_s - self._second_s >= 1.0:
            self._second_s, self._second_refused = now_s, self._second_refused // 2
        self._second_refused += 1
        return hint_ms(1000 * self._second_refused / REFUSED_PER_S)


def hint_ms(wait_ms: float) -> int:
    """Return a wait as a hint: whole steps, so that few different ones are made, within its bounds."""
    return min(HINT_MS_MAX, max(HINT_MS_MIN, HINT_STEP_MS * round(wait_ms / HINT_STEP_MS)))


def leave_ms(connections: int) -> int | None:
    """Return when each of so many connections is to come back that all lose at once; None when they are few."""
    wait_ms = 1000 * connections / RATE_BEGIN_PER_S
    return hint_ms(wait_ms) if wait_ms >= HINT_STEP_MS else None
