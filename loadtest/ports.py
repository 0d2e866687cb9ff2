"""Whether the port of a master that is about to start is free, looked at before Locust makes any process.

Locust starts the workers of `--processes` first and binds the port then; when that fails, they stay behind and try to
connect for five minutes. So its command line is read here as well, as far as ports go.
"""

from __future__ import annotations

import argparse
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MASTER_PORT_DEFAULT: Final = 5557


def master_of(arguments: Sequence[str]) -> tuple[str, int] | None:
    """Return where a Locust with these arguments will have a master, or None if it will have none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--master", action="store_true")
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--processes", default="")
    parser.add_argument("--master-bind-host", default="*")
    parser.add_argument("--master-bind-port", default=str(MASTER_PORT_DEFAULT))
    found, _ = parser.parse_known_args(list(arguments))
    port = str(found.master_bind_port)
    if found.worker or not (found.master or found.processes) or not port.isdigit():
        return None
    return str(found.master_bind_host), int(port)


def taken(host: str, port: int) -> str | None:
    """Say why nobody can listen there, or None."""
    try:
        # As Locust binds it; a port that was in use a moment ago is free.
        with socket.create_server(("" if host == "*" else host, port)):
            return None
    except OSError as failure:
        why = os.strerror(failure.errno) if failure.errno else str(failure)
        return f"{host}:{port}: the master cannot listen there: {why}; choose another --master-bind-port"
