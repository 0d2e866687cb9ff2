"""Names of channels and patterns over them: validation, matching and sharding.

A channel is a literal dotted name, `chat.acme.42`: tokens of 1 to 128 printable ASCII characters other than space
and `. * > $ " \\`, at most 255 bytes in all. `$…` is reserved for the broker itself, and no pattern reaches it.
A pattern is such a name in which `*` stands for exactly one token and a final `>` for one or more.

Validated names are `bytes`. Functions other than the checks trust their arguments to be validated ones. The valid
path is one scan by a compiled expression; only a refusal looks for its reason.
"""

from __future__ import annotations

import re

from broker.model.errors import BrokerError, error

NAME_BYTES_MAX = 255
TOKEN_BYTES_MAX = 128
ID_BYTES_MAX = 64
TOKENS_MAX = 128
"""Follows from the other two: 128 tokens of one byte and 127 dots are 255 bytes."""

# 0x21-0x7E without " (22) $ (24) * (2A) . (2E) > (3E) \ (5C). The class excludes the dot, so a name can be split in
# one way only and the expressions never backtrack for long.
_TOKEN = rb"[!#%-)+,\-/-=?-\[\]-~]{1,128}"
_CHANNEL = re.compile(rb"%b(?:\.%b)*" % (_TOKEN, _TOKEN))
_PATTERN = re.compile(rb">|(?:\*|%b)(?:\.(?:\*|%b))*(?:\.>)?" % (_TOKEN, _TOKEN))
_FOREIGN_BYTE = re.compile(rb'[^!-~]|["$\\*>]')
_channel_fullmatch = _CHANNEL.fullmatch
_pattern_fullmatch = _PATTERN.fullmatch

_DOLLAR = b"$"
_DISPLAY_BYTES_MAX = 64


def check_channel(name: str | bytes) -> bytes:
    """Return the name of a channel as bytes if it is one.

    Args:
        name: the candidate, text or bytes.

    Returns:
        The name's bytes: the argument itself when that was valid bytes.

    Raises:
        InvalidChannel: it is empty, too long, reserved, or has a token that no name may have.
    """
    candidate = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
    if len(candidate) <= NAME_BYTES_MAX and _channel_fullmatch(candidate) is not None:
        return candidate
    raise _refusal("INVALID_CHANNEL", "channel", candidate)


def check_pattern(pattern: str | bytes) -> bytes:
    """Return a filter, a channel's name or a pattern, as bytes if it is one.

    Args:
        pattern: the candidate, text or bytes.

    Returns:
        The filter's bytes: the argument itself when that was valid bytes.

    Raises:
        InvalidPattern: it is empty, too long, reserved, or has a token that neither a name nor a pattern may have.
    """
    candidate = pattern if isinstance(pattern, bytes) else pattern.encode("utf-8", "surrogatepass")
    if len(candidate) <= NAME_BYTES_MAX and _pattern_fullmatch(candidate) is not None:
        return candidate
    raise _refusal("INVALID_PATTERN", "pattern", candidate)


def is_reserved(name: bytes) -> bool:
    """Return whether a name belongs to the broker itself (`$…`); it need not be a valid one."""
    return name.startswith(_DOLLAR)


def is_pattern(checked: bytes) -> bool:
    """Return whether a validated filter has a wildcard; if not, it is a channel's name.

    Neither wildcard can be part of a token, so finding its byte is enough.
    """
    return b"*" in checked or checked.endswith(b">")


def matches(pattern: bytes, name: bytes) -> bool:
    """Return whether a filter selects a channel.

    Args:
        pattern: a validated filter.
        name: a validated channel's name, or a reserved one, which only the same literal selects.

    Returns:
        True if every token agrees. Linear in the length of the name.
    """
    if pattern == name:
        return True
    if name.startswith(_DOLLAR):
        return False
    if b"*" not in pattern:
        # `a.>` without its `>` is `a.`, and a valid name never ends with a dot: a prefix leaves at least one token.
        return pattern.endswith(b">") and name.startswith(pattern[:-1])
    wanted, tokens = pattern.split(b"."), name.split(b".")
    if wanted[-1] == b">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
    elif len(tokens) != len(wanted):
        return False
    return all(want in (token, b"*") for want, token in zip(wanted, tokens, strict=False))


def covers(wide: bytes, narrow: bytes) -> bool:
    """Return whether every channel that one filter selects is selected by another.

    Args:
        wide: a validated filter.
        narrow: a validated filter.

    Returns:
        True if nothing that `narrow` selects escapes `wide`.
    """
    # Reading a filter as a name is right but for one case: a `*` of `wide` must not swallow the open end of `narrow`.
    if narrow.endswith(b">") and not wide.endswith(b">"):
        return False
    return matches(wide, narrow)


def overlap(one: bytes, other: bytes) -> bool:
    """Return whether some channel is selected by both of two filters.

    Args:
        one: a validated filter.
        other: a validated filter.
    """
    ours, theirs = one.split(b"."), other.split(b".")
    for our, their in zip(ours, theirs, strict=False):
        if b">" in (our, their):
            return True
        if our != their and b"*" not in (our, their):
            return False
    return len(ours) == len(theirs)


def shard_key(name: bytes, tokens: int) -> bytes:
    """Return the part of a name that decides its shard: the first tokens, dots included.

    Args:
        name: a validated channel's name.
        tokens: how many, from 1; a name with fewer is its own key.

    Returns:
        A prefix of the name that ends at a token's end.
    """
    end = -1
    for _ in range(tokens):
        end = name.find(b".", end + 1)
        if end < 0:
            return name
    return name[:end]


def display(name: bytes) -> str:
    """Return bytes of a peer as short printable text for a message: escaped, cut after 64 bytes."""
    shown = ascii(name[:_DISPLAY_BYTES_MAX].decode("latin-1"))
    return shown if len(name) <= _DISPLAY_BYTES_MAX else f"{shown}…"


def _refusal(code_name: str, what: str, candidate: bytes) -> BrokerError:
    """Say why a candidate is none; the first reason that holds is the one to mend first."""
    if not candidate:
        return error(code_name, f"{what}: got 0 bytes, expected 1 to {NAME_BYTES_MAX} bytes")
    if len(candidate) > NAME_BYTES_MAX:
        return error(
            code_name, f"{what} {display(candidate)}: got {len(candidate)} bytes, limit {NAME_BYTES_MAX} bytes"
        )
    if is_reserved(candidate):
        return error(code_name, f"{what} {display(candidate)}: names that begin with $ are reserved")
    tokens = candidate.split(b".")
    wild = code_name == "INVALID_PATTERN"
    offset = 0
    for number, token in enumerate(tokens, 1):
        if not (wild and (token == b"*" or (token == b">" and number == len(tokens)))):
            reason = _token_refusal(token, offset, wild)
            if reason:
                return error(code_name, f"{what} {display(candidate)}: token {number} {reason}")
        offset += len(token) + 1
    raise AssertionError(f"{candidate!r} was refused without a reason")


def _token_refusal(token: bytes, offset: int, wild: bool) -> str:
    """Return what is wrong with one token, or nothing."""
    if not token:
        return f"is empty, expected 1 to {TOKEN_BYTES_MAX} bytes"
    if len(token) > TOKEN_BYTES_MAX:
        return f"has {len(token)} bytes, limit {TOKEN_BYTES_MAX} bytes"
    foreign = _FOREIGN_BYTE.search(token)
    if foreign is None:
        return ""
    byte, at = foreign.group(), offset + foreign.start()
    if byte == b">" and wild:
        return f"has > at byte {at}; it must be the last token, alone"
    if byte == b"*" and wild:
        return f"has * at byte {at}; it must be a token of its own"
    return f'has byte 0x{byte[0]:02x} at byte {at}, expected printable ASCII other than space . * > $ " and \\'
