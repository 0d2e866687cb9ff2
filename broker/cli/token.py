"""`broker token`: make what somebody signs in with, try it as a server would, and say what is wrong with it.

A token is read from a file or from stdin and never from the command line, where every user of the machine can see it.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from broker.access.identity import Verb
from broker.cli import ExitCode, exit_code_of

if TYPE_CHECKING:
    from broker.access.identity import Identity
    from broker.access.rules import Rules
    from broker.model.errors import BrokerError

_access = click.option(
    "--access",
    "access_path",
    type=click.Path(dir_okay=False),
    required=True,
    envvar="BROKER_ACCESS_FILE",
    show_envvar=True,
    help="The access file that a server has.",
)
_token = click.argument("token_path", metavar="[FILE]", default="-", type=click.Path(dir_okay=False, allow_dash=True))
_json = click.option("--json", "as_json", is_flag=True, help="One object.")
TTL_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@click.group("token", no_args_is_help=True)
def command() -> None:
    """Make tokens, try them as a server would, and explain them.

    Without FILE a token is read from stdin; it is no argument, since arguments are seen by everybody on the machine.

    \b
    broker token key main --private signing.json --public keys.json
    broker token make --access access.toml --key signing.json --user ada --role chat --ttl 1h > ada.token
    broker token make --static backup --user backup --role reader > backup.token
    broker token check --access access.toml ada.token
    broker token explain --access access.toml --may publish:chat.acme.42 ada.token
    """


# -- key ---------------------------------------------------------------------------------------------------------------


@command.command("key")
@click.argument("key_id", metavar="KEY_ID")
@click.option("--algorithm", type=click.Choice(["EdDSA", "RS256", "HS256"]), default="EdDSA", show_default=True)
@click.option("--private", "private_path", required=True, metavar="FILE", help="New file for who signs; mode 0600.")
@click.option("--public", "public_path", required=True, metavar="FILE", help="Key set of servers; the key is added.")
def make_key(key_id: str, algorithm: str, private_path: str, public_path: str) -> None:
    """Make a key called KEY_ID to sign tokens with.

    A server that has the key set already takes the key within a second. To rotate, add a key, sign with it, and take
    the old one out of the set when the last token that it has signed is over.
    """
    from broker.access import minting

    key = minting.make_key(key_id, algorithm)
    minting.write_new(private_path, json.dumps(key, indent=2) + "\n")
    try:
        minting.add_public_key(public_path, key)
    except BaseException:
        os.unlink(private_path)  # nobody would know what to do with half of a pair
        raise


# -- make --------------------------------------------------------------------------------------------------------------


def _seconds(ctx: click.Context, parameter: click.Parameter, text: str) -> int:
    """Return a time such as 90s, 15m, 12h or 30d in seconds."""
    number, unit = text[:-1], TTL_UNITS_S.get(text[-1:])
    if (
        unit is None
        or not (number.isascii() and number.isdigit())
        or not 0 < int(number[:12]) * unit <= 10 * 365 * 86_400
    ):
        raise click.BadParameter(f"got {text!a}, expected a time such as 90s, 15m, 12h or 30d, at most 3650d")
    return int(number) * unit


@command.command("make")
@click.option("--access", "access_path", metavar="FILE", envvar="BROKER_ACCESS_FILE", show_envvar=True,
              help="The access file that a server has: it says what a signed token must hold.")  # fmt: skip
@click.option(
    "--key", "key_path", metavar="FILE", help="The private key to sign with, as `broker token key` writes it."
)
@click.option("--static", "static_id", metavar="ID", help="A token for the access file instead of a signed one.")
@click.option("--user", required=True, help="Who signs in with it.")
@click.option("--role", "roles", multiple=True, help="What that one may do; repeatable.")
@click.option("--ttl", "ttl_s", default="1h", show_default=True, callback=_seconds, help="How long a signed one holds.")
@click.option("--id", "token_id", help="Name it for [revoked]; a signed one gets a random one else.")
@click.option(
    "--claim", "claims", multiple=True, metavar="NAME=VALUE", help="For the placeholders of roles; repeatable."
)
def make(
    access_path: str | None,
    key_path: str | None,
    static_id: str | None,
    user: str,
    roles: tuple[str, ...],
    ttl_s: int,
    token_id: str | None,
    claims: tuple[str, ...],
) -> None:
    """Print a new token.

    A signed one is tried before it is printed: what the server would refuse is not made. Of one with --static, the
    lines for the access file come on stderr; the file gets a hash, and the token itself is nowhere but in this output.
    """
    from broker.access.identity import USER_BYTES_MAX, is_user

    if not is_user(user):
        raise click.BadParameter(
            f"got {user[:64]!a}, expected 1 to {USER_BYTES_MAX} printable bytes", param_hint="--user"
        )
    if (static_id is None) == (key_path is None):
        raise click.UsageError("a token is either signed, --key FILE, or listed, --static ID")
    if static_id is not None:
        _make_static(static_id, user, roles)
        return
    if access_path is None or key_path is None:
        raise click.UsageError("a signed token needs --access FILE, which says what it must hold")
    click.echo(_signed(access_path, key_path, user, roles, ttl_s, token_id, claims))


def _make_static(static_id: str, user: str, roles: tuple[str, ...]) -> None:
    from broker.access import static

    if not static.is_id(static_id):
        raise click.BadParameter("expected 1 to 64 of A-Z a-z 0-9 _ -", param_hint="--static")
    if not roles:
        raise click.UsageError("a token of the access file has one role or more: --role ROLE")
    token = static.make(static_id)
    lines = (
        f"[tokens.{static_id}]",
        f'hash = "{static.hash_of(token.partition(".")[2])}"',
        f"user = {json.dumps(user)}",
        f"roles = {json.dumps(roles)}",
    )
    click.echo("\n".join(lines), err=True)
    click.echo(token)


def _signed(
    access_path: str,
    key_path: str,
    user: str,
    roles: tuple[str, ...],
    ttl_s: int,
    token_id: str | None,
    claims: tuple[str, ...],
) -> str:
    import time
    from secrets import token_urlsafe

    from broker.access.access_file import read_access_file
    from broker.access.minting import Signer, read_signing_key
    from broker.model.errors import error

    rules = read_access_file(access_path).rules
    demands = rules.demands
    if rules.keys is None or demands is None:
        raise error("INVALID_CONFIG", f"{access_path}: got no [jwt], expected it for signed tokens")
    now_s = int(time.time())
    said: dict[str, object] = dict(_claim(pair) for pair in claims)
    said |= {
        demands.user_claim: user,
        "iss": demands.issuer,
        "aud": demands.audience,
        "jti": token_id or token_urlsafe(9),
    }
    said |= {"iat": now_s, "exp": now_s + ttl_s}
    if roles:
        said[demands.roles_claim] = list(roles)
    token = Signer(read_signing_key(key_path)).mint(said)
    rules.of_signed(rules.keys.verify(token), "", now_s)
    return token


def _claim(pair: str) -> tuple[str, object]:
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"got {pair[:64]!a}, expected NAME=VALUE", param_hint="--claim")
    return name, value


# -- check and explain -------------------------------------------------------------------------------------------------


@command.command("check")
@_token
@_access
@_json
def check(token_path: str, access_path: str, as_json: bool) -> None:
    """Try a token as the server would, and say whose it is.

    Exit status 0 if it is good, 5 if not.
    """
    from broker.access.access_file import read_access_file

    rules = read_access_file(access_path).rules
    identity = _identity(rules, _read_token(token_path))
    if as_json:
        click.echo(json.dumps(_fields(identity), indent=2))
    else:
        click.echo(f"{identity.user}\t{','.join(identity.roles)}\t{_moment(identity.expires_s)}")


@command.command("explain")
@_token
@_access
@click.option("--may", "questions", multiple=True, metavar="VERB:NAME", help="Whether it may, and by what; repeatable.")
@_json
def explain(token_path: str, access_path: str, questions: tuple[str, ...], as_json: bool) -> ExitCode | None:
    """Say what stands in a token, whether it is good, what it may do, and why.

    Its signature and its secret are not shown. Exit status 0 if it is good and may do all that --may asks for, 1 if it
    may not, 5 if it is not good.

    \b
    broker token explain --access access.toml --may subscribe:chat.acme.> < ada.token
    """
    from broker.access.access_file import read_access_file
    from broker.model.errors import BrokerError

    asked = [_question(each) for each in questions]
    rules = read_access_file(access_path).rules
    token = _read_token(token_path)
    found: Identity | BrokerError
    try:
        found = _identity(rules, token)
    except BrokerError as failure:
        found = failure
    answers = [(verb, name, _answer(found, verb, name)) for verb, name in asked]
    if as_json:
        _print_json(token, found, answers)
    else:
        _print_lines(token, found, answers)
    if isinstance(found, BrokerError):
        return exit_code_of(found)
    return None if all(by is not None for _, _, by in answers) else ExitCode.WRONG


def _read_token(path: str) -> str:
    """Return the token of a file or of stdin."""
    from broker.access.signed import TOKEN_BYTES_MAX
    from broker.model.errors import error

    try:
        with click.open_file(path, encoding="utf-8", errors="surrogateescape") as file:
            text: str = file.read(2 * TOKEN_BYTES_MAX)
    except OSError as failure:
        raise error(
            "INVALID_CONFIG", f"{path}: cannot be read: {failure.strerror}", "Name a file with a token."
        ) from None
    return text.strip()


def _identity(rules: Rules, token: str) -> Identity:
    """Return whose token it is.

    Raises:
        Denied: UNAUTHENTICATED, TOKEN_EXPIRED; it is not good.
    """
    import time

    return rules.of_text(token, "", time.time())


def _question(text: str) -> tuple[Verb, bytes]:
    from broker.model.errors import BrokerError
    from broker.model.names import check_pattern

    verb, _, name = text.partition(":")
    try:
        return Verb(verb), check_pattern(name)
    except (ValueError, BrokerError):
        verbs = ", ".join(Verb)
        raise click.BadParameter(
            f"got {text[:64]!a}, expected VERB:NAME, a verb of {verbs}", param_hint="--may"
        ) from None


def _answer(found: Identity | BrokerError, verb: Verb, name: bytes) -> str | None:
    """Return the granted filter by which somebody may do something, or None."""
    grants = getattr(found, "grants", None)
    by = None if grants is None else grants.find(verb, name)
    return None if by is None else by.decode()


def _fields(identity: Identity) -> dict[str, object]:
    grants = identity.grants
    return {
        "user": identity.user,
        "roles": list(identity.roles),
        "expires_s": identity.expires_s,
        "token_id": identity.token_id or None,
        "grants": {} if grants is None else {
            str(verb): [each.decode() for each in grants.filters(verb)] for verb in Verb
        },
    }  # fmt: skip


def _print_json(token: str, found: Identity | BrokerError, answers: list[tuple[Verb, bytes, str | None]]) -> None:
    from broker.model.errors import BrokerError, to_wire

    header, claims = _said(token)
    body: dict[str, object] = {"header": header, "claims": claims}
    if isinstance(found, BrokerError):
        body["error"] = to_wire(found) | {"hint": found.hint}
    else:
        body["identity"] = _fields(found)
    body["may"] = [{"verb": str(verb), "name": name.decode(), "by": by} for verb, name, by in answers]
    click.echo(json.dumps(body, indent=2))


def _print_lines(token: str, found: Identity | BrokerError, answers: list[tuple[Verb, bytes, str | None]]) -> None:
    """Print one fact a line: what it is about, and what."""
    from broker.cli.main import printable
    from broker.model.errors import BrokerError

    header, claims = _said(token)
    facts = [("header", f"{name} {json.dumps(value)}") for name, value in (header or {}).items()]
    facts += [("claim", _told(name, value)) for name, value in (claims or {}).items()]
    if isinstance(found, BrokerError):
        facts += [("refused", str(found)), ("hint", found.hint)]
    else:
        facts += [("good", f"user {found.user}, until {_moment(found.expires_s)}")]
        facts += [("role", role) for role in found.roles]
        grants = found.grants
        if grants is not None:
            facts += [("grant", f"{verb} {each.decode()}") for verb in Verb for each in grants.filters(verb)]
    for verb, name, by in answers:
        facts.append(("may" if by is not None else "may not", f"{verb} {name.decode()}" + (f", by {by}" if by else "")))
    for what, fact in facts:
        click.echo(f"{what:8} {printable(fact)}")


def _said(token: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return header and claims of a signed token as they stand in it, whoever wrote them; None for what has none."""
    from base64 import urlsafe_b64decode

    parts = token.split(".")
    found: list[dict[str, Any] | None] = []
    for part in parts[:2] if len(parts) == 3 else ():
        try:
            value = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        except (ValueError, RecursionError):
            value = None
        found.append(value if isinstance(value, dict) else None)
    return (found[0], found[1]) if found else (None, None)


def _told(name: str, value: object) -> str:
    text = f"{name} {json.dumps(value)}"
    is_time = name in ("exp", "nbf", "iat") and isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{text}, {_moment(value)}" if is_time and isinstance(value, (int, float)) else text


def _moment(time_s: float | None) -> str:
    """Return a time for people."""
    from datetime import UTC, datetime

    if time_s is None:
        return "no end"
    try:
        return datetime.fromtimestamp(time_s, UTC).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return "beyond the calendar"
