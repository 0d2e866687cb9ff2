"""Servers that are ready at once: `python -m tests.shared.nursery SOCKET` has imported everything, and forks them.

The opener's own way of starting a server stays as it is, but for the command: in place of half a second of imports it
runs `stub.py`, which hands its arguments and descriptors over here. What is forked here then does what
`python -m broker serve` does from its first line on. Ends with its standard input.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from broker.cli import serve as _verb  # noqa: F401
from broker.cli.main import main as run_cli
from broker.edge import serve as _edge  # noqa: F401
from broker.edge import starter as _starter  # noqa: F401

if TYPE_CHECKING:
    from typing import NoReturn

REQUEST_BYTES_MAX = 1 << 16


def serve(request: dict[str, Any], log: int, ready: int, lock: int) -> NoReturn:
    """Be what the stub would have been."""
    status = 1
    try:
        os.setsid()
        os.chdir(request["cwd"])
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, descriptor)
        os.close(log)
        os.close(null)
        status = run_cli([*request["arguments"], "--starter", f"{ready},{lock}"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def answer(connection: socket.socket, others: list[socket.socket]) -> None:
    """Fork one server, and see what it forks from gone."""
    body, descriptors, _, _ = socket.recv_fds(connection, REQUEST_BYTES_MAX, 3)
    if len(descriptors) == 3:
        child = os.fork()
        if not child:
            for each in (connection, *others):
                each.close()
            serve(json.loads(body), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(child, 0)
    connection.close()


def main(path: str) -> None:
    """Answer stubs until the input ends."""
    import select

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        gc.freeze()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listening.accept()
            answer(connection, [listening])


if __name__ == "__main__":
    main(sys.argv[1])
