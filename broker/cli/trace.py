"""`broker trace`: where one message is, how it came there, and who has got it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from broker.cli.main import printable
from broker.cli.names import complete_channel

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATES = {
    "stored": "stored",
    "pending": "taken, and not on the disk yet",
    "trimmed": "gone: what its channel keeps begins behind it",
    "gone": "gone",
}
_REASONS = {1: "expired", 2: "compacted", 3: "revoked", 4: "erased", 5: "dropped", 6: "lost", 7: "conflated"}
_READERS = {
    "passed": "was handed to the connection",
    "behind": "not yet: the reader is behind it",
    "before": "never: the reader began behind it",
    "shared": "one member of the live group got it",
    "unknown": "not known: it is in the archive",
}

_CONSUMERS = {"done": "done", "open": "not done", "unknown": "not known: it is in the archive"}


@click.command("trace")
@click.argument("channel", shell_complete=complete_channel)
@click.argument("sequence", type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="One object, as the broker tells it.")
@click.option("--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]")
def command(channel: str, sequence: int, as_json: bool, url: str | None) -> None:
    """Say when a message was taken, committed and delivered, to whom, and where it is now.

    Times after the first are known of the newest few thousand groups only. Handed to a connection is not read by a
    client: what a consumer has acknowledged stands under consumers.

    \b
    broker trace chat.acme.42 17
    broker trace chat.acme.42 17 --json | jq .readers
    """
    found = asyncio.run(ask(url, channel, sequence))
    if as_json:
        click.echo(json.dumps(found, default=text_of))
    else:
        for line in lines_of(found):
            click.echo(printable(line))


async def ask(url: str | None, channel: str, sequence: int) -> dict[str, Any]:
    """Ask the broker."""
    from broker import connect
    from broker.remote.address import URL_DEFAULT

    async with connect(url or URL_DEFAULT) as bus:
        return await bus.ask("trace", {"channel": channel, "sequence": sequence})


def text_of(value: object) -> str:
    """Return bytes as text, escaped where they are none."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """Return an answer as lines for people."""
    state = str(found.get("state"))
    told = _STATES.get(state, state)
    if state == "gone":
        told = f"gone: {_REASONS.get(found.get('reason', 0), found.get('reason'))}"
    lines = [f"{found.get('channel')} {found.get('sequence')}: {told}"]
    lines += [f"  {name:<10} {value}" for name, value in _record(found)]
    counts = found.get("counts") or {}
    lines.append(f"  {'readers':<10} " + (", ".join(f"{counts[key]} {key}" for key in sorted(counts)) or "none now"))
    for reader in found.get("readers") or []:
        how = _READERS.get(reader["state"], reader["state"])
        queued = f", {reader['queued_bytes']} bytes wait there" if reader.get("queued_bytes") else ""
        who = " ".join(filter(None, [reader.get("name"), reader.get("peer")]))
        lines.append(
            f"    connection {reader['connection']}, subscription {reader['subscription']} ({who}): {how}{queued}"
        )
    for name, done in found.get("consumers") or []:
        lines.append(
            f"    consumer {name}: {'done' if done == 'done' else 'not done' if done == 'open' else 'not known'}"
        )
    if found.get("more"):
        lines.append("    and more")
    return lines


def _reader(reader: Mapping[str, Any]) -> str:
    """Return one reader as a line."""
    who = " ".join(filter(None, [reader.get("name"), reader.get("peer")]))
    how = _READERS.get(reader["state"], reader["state"])
    queued = f", {reader['queued_bytes']} bytes wait there" if reader.get("queued_bytes") else ""
    return f"connection {reader['connection']}, subscription {reader['subscription']} ({who}): {how}{queued}"


def _record(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the broker tells of the message itself, by what it is called."""
    rows: list[tuple[str, str]] = []
    taken_us = found.get("time_us")
    if taken_us:
        rows.append(("taken", f"{datetime.fromtimestamp(taken_us / 1e6, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"))
    if found.get("publisher"):
        rows.append(("by", str(found["publisher"])))
    rows += [(name, text_of(found[name])) for name in ("id", "key") if name in found]
    if "bytes" in found:
        rows.append(("payload", f"{found['bytes']} bytes"))
    if "epoch" in found:
        rows.append(("epoch", str(found["epoch"])))
    if "group" in found:
        rows.append(("group", f"{found['group']}, chunk {found['index']}"))
    for name, key in (("to disk", "closed_us"), ("committed", "committed_us"), ("delivered", "delivered_us")):
        if taken_us and found.get(key):
            rows.append((name, f"{max(found[key] - taken_us, 0) / 1e3:.3f} ms after it was taken"))
    if "archived" in found:
        rows.append(("where", "the archive" if found["archived"] else "the journal"))
    return rows
