"""Play all conversations anew and write the golden files: `python -m tests.golden.record`.

Run it when the protocol or a conversation has changed on purpose, and read the difference before committing it. It
writes `traces/*.trace` and the hex of `broker/wire/specification.md`. Tests never run it; they fail instead.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tests.golden.conversations import CONVERSATIONS
from tests.golden.document import refresh

TRACES = Path(__file__).parent / "traces"
SPECIFICATION = Path(__file__).parents[2] / "broker/wire/specification.md"


def main() -> None:
    """Write everything."""
    logging.getLogger("broker").setLevel(logging.CRITICAL)
    TRACES.mkdir(exist_ok=True)
    for stale in TRACES.glob("*.trace"):
        stale.unlink()
    for name, build in CONVERSATIONS.items():
        (TRACES / f"{name}.trace").write_text(build().render())
    SPECIFICATION.write_text(refresh(SPECIFICATION.read_text()))


if __name__ == "__main__":
    main()
