"""What `locust -f loadtest/locustfile.py` loads: users, shapes, options, and the conductor of the test.

    locust -f loadtest/locustfile.py --host broker://127.0.0.1:4770 --headless -t 60s

Locust gives this file's folder to Python, and not the one above it, where the packages are.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / "ext", ROOT):
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from loadtest.conductor import listen  # noqa: E402
from loadtest.ports import places_of, taken  # noqa: E402
from loadtest.scenarios.backlog import BacklogUser  # noqa: E402
from loadtest.scenarios.celebrity import CelebrityUser  # noqa: E402
from loadtest.scenarios.chat import ChatUser  # noqa: E402
from loadtest.scenarios.fanout import FanoutUser  # noqa: E402
from loadtest.scenarios.mixed import user_classes  # noqa: E402
from loadtest.scenarios.reconnect import ReconnectUser  # noqa: E402
from loadtest.shapes import Shape  # noqa: E402

__all__ = ["BacklogUser", "CelebrityUser", "ChatUser", "FanoutUser", "ReconnectUser", "Shape"]

# Before there are workers, who would stay behind.
if complaints := [complaint for place in places_of(sys.argv[1:]) if (complaint := taken(place)) is not None]:
    sys.exit("\n".join(f"load test: {complaint}" for complaint in complaints))
listen(user_classes())
