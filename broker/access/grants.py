"""What an identity may do: filters by verb, each granted; there is no word for a denial.

A rule that denies has to be found again in every way in which a name can be reached, and whoever forgets one has a
hole. A grant that is forgotten only closes a door. So what no grant names is denied.

A filter may have placeholders, `user.{sub}.>`, which stand for claims of whoever signs in. What takes their place has
to be one token of a name: `a.b`, `*` or `>` in a claim would grant what nobody meant to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from broker.access.identity import Verb
from broker.model.errors import InvalidChannel, InvalidPattern, error
from broker.model.names import check_channel, check_pattern, covers, display, is_reserved

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Grants", "Role", "check_template", "fill"]

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
CLAIM_BYTES_MAX = 128
"""A token of a name has no more."""


class _Granted(NamedTuple):
    """The filters of one verb, sorted by how a name is compared with them."""

    literals: frozenset[bytes]
    prefixes: tuple[bytes, ...]
    wild: tuple[bytes, ...]


class Grants:
    """What somebody may do; a value that is never changed, shared between threads freely.

    Args:
        filters: By verb, validated filters.
    """

    __slots__ = ("_by_verb", "_filters")

    def __init__(self, filters: Mapping[Verb, Iterable[bytes]]) -> None:
        self._filters = {verb: tuple(dict.fromkeys(given)) for verb, given in filters.items() if given}
        self._by_verb: dict[Verb, _Granted] = {}  # those that somebody asked for: signing in is the more frequent

    def allows(self, verb: Verb, name: bytes) -> bool:
        """Return whether something may be done to a channel, or to everything that a pattern selects.

        Args:
            verb: what.
            name: A channel's name or a pattern. A pattern has to lie within one granted filter as a whole. A name that
                is no valid one is refused elsewhere, whatever is said here; `$…` is granted to nobody.
        """
        granted = self._by_verb.get(verb)
        if granted is None:
            granted = self._by_verb[verb] = _sorted(self._filters.get(verb, ()))
        return not is_reserved(name) and (
            name in granted.literals
            or name.startswith(granted.prefixes)
            or any(covers(wide, name) for wide in granted.wild)
        )

    def find(self, verb: Verb, name: bytes) -> bytes | None:
        """Return the granted filter that a name lies within, the first one, or None."""
        return next((wide for wide in self.filters(verb) if covers(wide, name)), None)

    def filters(self, verb: Verb) -> tuple[bytes, ...]:
        """Return what is granted for a verb, in the order in which it was."""
        return self._filters.get(verb, ())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grants) and self._filters == other._filters

    def __hash__(self) -> int:
        return hash(tuple((verb, self.filters(verb)) for verb in Verb))

    def __repr__(self) -> str:
        granted = [f"{verb}={[each.decode() for each in self.filters(verb)]}" for verb in Verb if self.filters(verb)]
        return f"Grants({', '.join(granted)})"


def _sorted(given: tuple[bytes, ...]) -> _Granted:
    wild = tuple(each for each in given if b"*" in each)
    open_ended = tuple(each for each in given if each.endswith(b">") and b"*" not in each)
    # `a.>` is whatever begins with `a.`, be it a name or a filter, since no token is empty.
    prefixes = tuple(each[:-1] for each in open_ended)
    return _Granted(frozenset(given).difference(wild, open_ended), prefixes, wild)


@dataclass(frozen=True, slots=True)
class Role:
    """Grants that have a name.

    Attributes:
        name: as an access file or a token says it.
        templates: by verb, filters that may have placeholders.
    """

    name: str
    templates: Mapping[Verb, tuple[str, ...]]

    @property
    def is_personal(self) -> bool:
        """Whether a filter has a placeholder, so that the grants depend on who it is."""
        return any("{" in template for templates in self.templates.values() for template in templates)


def check_template(template: str) -> None:
    """Check that a filter with placeholders will be one when they are filled.

    Raises:
        InvalidPattern: it is none, or has a brace that begins or ends no placeholder.
    """
    filled = _PLACEHOLDER.sub("claim", template)
    check_pattern(filled)
    if "{" in filled or "}" in filled:
        raise error("INVALID_PATTERN", f"pattern {display(template.encode())}: expected placeholders such as {{sub}}")


def fill(roles: Iterable[Role], claims: Mapping[str, object]) -> Grants:
    """Return what roles come to for somebody.

    Args:
        roles: The roles, their templates checked.
        claims: What stands for the placeholders: text or whole numbers.

    Raises:
        Denied: UNAUTHENTICATED; a claim that a template names is not there, or is no single token of a name.
    """
    filters: dict[Verb, list[bytes]] = {verb: [] for verb in Verb}
    for role in roles:
        for verb, templates in role.templates.items():
            filters[verb] += [_filled(template, role, claims) for template in templates]
    return Grants(filters)


def _filled(template: str, role: Role, claims: Mapping[str, object]) -> bytes:
    if "{" not in template:
        return template.encode()

    def value(found: re.Match[str]) -> str:
        claim = claims.get(found[1])
        text = str(claim) if isinstance(claim, (str, int)) and not isinstance(claim, bool) else ""
        if not text or len(text) > CLAIM_BYTES_MAX or "." in text or not _is_name(text):
            got = "nothing" if claim is None else display(str(claim).encode("utf-8", "surrogatepass"))
            raise error(
                "UNAUTHENTICATED",
                f"role {role.name!r}: {template!r} needs the claim {found[1]!r}: got {got}, expected a token of a name",
                "Sign in with a token that has this claim.",
            )
        return text

    filled = _PLACEHOLDER.sub(value, template)
    try:
        return check_pattern(filled)
    except InvalidPattern as failure:  # each claim is a token, and all together may be too long
        raise error("UNAUTHENTICATED", f"role {role.name!r}: {template!r} with its claims: {failure.detail}") from None


def _is_name(text: str) -> bool:
    try:
        check_channel(text)
    except InvalidChannel:
        return False
    return True
