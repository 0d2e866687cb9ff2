"""What a server does besides when it ends by itself: it was started for a shared bus, and nobody looks after it.

It ends when no connection has been open for long enough, and when its directory is gone. A socket that somebody has
removed (a temporary folder that was cleaned, say) is made anew, or nobody would find it and nobody could start another.
What it says goes to a file that it keeps within a bound by itself.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from broker.config.judge import plain
from broker.model.settings import KIB, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from broker.config import Config
    from broker.model.settings import Section

__all__ = ["LOG_BYTES_MAX", "bound_log", "is_missing", "settings_in_force", "until_idle_s"]

LOG_BYTES_MAX = 1024 * KIB
LOG_BYTES_KEPT = LOG_BYTES_MAX // 2


def until_idle_s(now_s: float, left_s: float, connections: int, idle_s: float) -> float:
    """Return the seconds until the server has been idle for long enough; 0 or less when it has.

    Args:
        now_s: the loop's time.
        left_s: when the last connection left, or the server became ready.
        connections: open ones.
        idle_s: how long is enough.
    """
    return idle_s if connections else left_s + idle_s - now_s


def is_missing(path: str | Path) -> bool:
    """Whether nothing has this name."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        # The system does not say, so it is not for us to act.
        return False
    return False


def bound_log(descriptor: int, bytes_max: int = LOG_BYTES_MAX, bytes_kept: int = LOG_BYTES_KEPT) -> bool:
    """Cut a log file to its newest lines when it has grown past its bound; says whether it was cut.

    Args:
        descriptor: of what is written to; anything but a regular file that was opened to append is left alone.
        bytes_max: the bound.
        bytes_kept: of the newest, at most.
    """
    with suppress(OSError):
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size <= bytes_max:
            return False
        newest = os.pread(descriptor, bytes_kept, status.st_size - bytes_kept)
        os.ftruncate(descriptor, 0)
        # From the first whole line on. Whoever else has the file open appends behind it.
        os.write(descriptor, newest.partition(b"\n")[2])
        return True
    return False


def settings_in_force(config: Config) -> dict[str, Any]:
    """Return the settings that an opener of a shared bus may ask for, as JSON has them, by section."""
    return {
        "limits": _values(config.limits),
        "storage": _values(config.storage),
        "profiles": [_values(profile) for profile in config.profiles],
    }


def _values(section: Section) -> dict[str, Any]:
    shown = asdict(section)
    return {name: plain(shown[name]) for name, setting in settings_of(section).items() if not setting.secret}
