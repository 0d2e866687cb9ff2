"""`broker version`: what is running here."""

from __future__ import annotations

import click


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="One object; null for what is not installed.")
def command(as_json: bool) -> None:
    """Print the versions of the broker and what it runs on."""
    versions = _versions()
    if as_json:
        import json

        click.echo(json.dumps(versions))
    else:
        for name, version in versions.items():
            click.echo(f"{name} {version or 'not installed'}")


def _versions() -> dict[str, str | None]:
    """Return the versions by name, in the order in which they are printed."""
    import platform

    import lmdb

    from broker._version import __version__

    return {
        "broker": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "uvloop": _installed("uvloop"),
        "lmdb": _installed("lmdb"),
        "lmdb library": ".".join(map(str, lmdb.version())),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _installed(package: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
