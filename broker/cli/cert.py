"""`broker cert`: certificates to develop with."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.model.settings import invalid

if TYPE_CHECKING:
    from broker.access.issuing import Issuer

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(
    r"(?=.{1,253}\Z)(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*"
)
_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
TAKEN = frozenset({"ca", "server", "server-key"})


@click.group("cert")
def command() -> None:
    """Certificates to develop with; a server that others depend on gets its own from whom they believe."""


@command.command("dev")
@click.option(
    "--directory",
    default="broker-certs",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the files are written.",
)
@click.option(
    "--name", "names", multiple=True, metavar="HOST", help="A name or address of the server, beside this machine's."
)
@click.option("--client", "clients", multiple=True, metavar="NAME", help="A certificate for a client of that name.")
@click.option("--days", type=click.IntRange(1, 825), default=365, show_default=True, help="How long they are good.")
def dev(directory: Path, names: tuple[str, ...], clients: tuple[str, ...], days: int) -> None:
    """Make an authority and a server's certificate that it signs.

    Writes ca.pem, server.pem and server-key.pem, and for each --client NAME.pem and NAME-key.pem, for this user alone.
    Files that are there stay: then nothing is written. The authority's key is written nowhere, so nobody signs anything
    else with it; for more, make all anew in another directory.

    \b
    broker cert dev
    broker cert dev --name broker.lan --name 192.168.1.7 --client worker
    """
    for name in names:
        if _HOST.fullmatch(name) is None and not is_address(name):
            raise invalid("--name", f"got {name[:64]!a}, expected a host's name or IP address")
    for name in clients:
        if _CLIENT.fullmatch(name) is None or name in TAKEN or clients.count(name) > 1:
            raise invalid(
                "--client",
                f"got {name[:64]!a}, expected 1 to 64 letters, digits, . _ @ -, none twice, no ca or server",
            )
    from broker.access.issuing import Issuer

    files = contents(Issuer(days=days), tuple(dict.fromkeys((*LOCAL_NAMES, *names))), clients)
    write_all(directory, files)
    for name in files:
        click.echo(str(directory / name))
    tell_use(directory, bool(clients))


def is_address(text: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def contents(authority: Issuer, names: tuple[str, ...], clients: tuple[str, ...]) -> dict[str, bytes]:
    """Return what each file holds."""
    server = authority.issue_server(names)
    files = {"ca.pem": authority.certificate, "server.pem": server.certificate, "server-key.pem": server.key}
    for name in clients:
        client = authority.issue_client(name)
        files |= {f"{name}.pem": client.certificate, f"{name}-key.pem": client.key}
    return files


def write_all(directory: Path, files: dict[str, bytes]) -> None:
    """Write files that only this user may open, all of them or none.

    Raises:
        ConfigError: INVALID_CONFIG; one of them is there already, or the system refuses.
    """
    written: list[Path] = []
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            path = directory / name
            # Made anew, whatever stands there: also a link that somebody has put in the way.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            written.append(path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except OSError as failure:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(failure, FileExistsError):
            raise invalid(
                "--directory", f"{failure.filename} is there already", "Name another directory, or remove it yourself."
            ) from None
        raise invalid("--directory", f"{failure.filename}: {failure.strerror}") from None


def tell_use(directory: Path, with_clients: bool) -> None:
    """Say on stderr what to do with the files."""
    own = f" --set tls.client_ca={directory / 'ca.pem'}" if with_clients else ""
    known = f"&certificate={directory / 'NAME.pem'}&key={directory / 'NAME-key.pem'}" if with_clients else ""
    click.echo(
        f"serve:   broker serve --set tls.certificate={directory / 'server.pem'} "
        f"--set tls.key={directory / 'server-key.pem'}{own}\n"
        f"connect: broker+tls://localhost?ca={directory / 'ca.pem'}{known}",
        err=True,
    )
