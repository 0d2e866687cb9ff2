"""Many openers of one directory at once: `python -m tests.shared.crowd PATH COUNT`, a JSON object a line for each.

They are forked from a process that has imported everything, and begin when the last of them is there.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from broker import Broker, BrokerError
from broker.shared import bus as _everything_imported  # noqa: F401


async def open_and_publish(path: str, number: int) -> dict[str, object]:
    """Open, publish one message, and say which server took it and where."""
    try:
        async with Broker.open(path, shared=True, idle_s=0.5, connect_timeout_s=60) as bus:
            receipt = await bus.publish("crowd", b"%d" % number)
            return {"server": (await bus.stats())["pid"], "sequence": receipt.sequence}
    except BrokerError as failure:
        return {"error": str(failure)}


def main(path: str, count: int) -> None:
    begin, begun = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            os.close(begun)
            os.read(begin, 1)  # the end of the pipe, when all are there
            line = json.dumps(asyncio.run(open_and_publish(path, number))) + "\n"
            os.write(1, line.encode())
            os._exit(0)
        children.append(child)
    os.close(begun)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
