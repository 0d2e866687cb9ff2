"""Whether the ports that Locust is about to listen on are free, looked at before it makes any process.

Locust starts the workers of `--processes` first and binds its ports then; when that fails, they stay behind and try to
connect for five minutes. So its command line is read here as well, as far as ports go.
"""

from __future__ import annotations

import argparse
import os
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

MASTER_PORT_DEFAULT: Final = 5557
WEB_PORT_DEFAULT: Final = 8089


class Place(NamedTuple):
    """Where somebody will listen: who, on what, and which option says so."""

    who: str
    host: str
    port: int
    option: str


def places_of(arguments: Sequence[str]) -> list[Place]:
    """Return where a Locust with these arguments will listen."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--master", "--worker", "--headless"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--processes", default="")
    parser.add_argument("--master-bind-host", default="*")
    parser.add_argument("--master-bind-port", type=int, default=MASTER_PORT_DEFAULT)
    parser.add_argument("--web-host", default="*")
    parser.add_argument("--web-port", "-P", type=int, default=WEB_PORT_DEFAULT)
    found, _ = parser.parse_known_args(list(arguments))
    if found.worker:
        return []
    places = []
    if found.master or found.processes:
        places.append(Place("the master", found.master_bind_host, found.master_bind_port, "--master-bind-port"))
    if not found.headless:
        places.append(Place("the web interface", found.web_host or "*", found.web_port, "--web-port"))
    return places


def taken(place: Place) -> str | None:
    """Say why nobody can listen there, or None."""
    try:
        # As Locust binds it; a port that was in use a moment ago is free.
        with socket.create_server(("" if place.host == "*" else place.host, place.port)):
            return None
    except OSError as failure:
        why = os.strerror(failure.errno) if failure.errno else str(failure)
        return f"{place.host}:{place.port}: {place.who} cannot listen there: {why}; choose another {place.option}"
