"""A list of (pattern, value) that is searched from end to end: the twin of `broker_native.trie`."""

from __future__ import annotations

from typing import Generic, TypeVar

NAME_BYTES_MAX = 255

T = TypeVar("T")


def is_text(text: bytes) -> bool:
    """Say whether a text has a legal size and no empty token."""
    return 1 <= len(text) <= NAME_BYTES_MAX and all(text.split(b"."))


def is_name(name: bytes) -> bool:
    """Say whether a text may be a channel's name, as far as the trie cares."""
    return is_text(name) and b"*" not in name and b">" not in name


def is_pattern(pattern: bytes) -> bool:
    """Say whether a text is a pattern, as far as the trie cares."""
    *tokens, last = pattern.split(b".")
    if last != b">":
        tokens.append(last)
    return is_text(pattern) and all(token == b"*" or not {*b"*>"} & {*token} for token in tokens)


def reaches(pattern: bytes, name: bytes) -> bool:
    """Say whether a legal pattern reaches a legal name."""
    wanted, got = pattern.split(b"."), name.split(b".")
    if name.startswith(b"$") and wanted[0] in (b"*", b">"):
        return False
    if wanted[-1] == b">":
        wanted.pop()
        if len(got) <= len(wanted):
            return False
        got = got[: len(wanted)]
    return len(wanted) == len(got) and all(want in (b"*", token) for want, token in zip(wanted, got, strict=True))


class PatternTrie(Generic[T]):
    """The same multiset, without a tree."""

    def __init__(self) -> None:
        self.entries: list[tuple[bytes, T]] = []
        self.version = 0

    def insert(self, pattern: bytes, value: T) -> None:
        if not is_pattern(pattern):
            raise ValueError(pattern)
        self.entries.append((pattern, value))
        self.version += 1

    def remove(self, pattern: bytes, value: T) -> bool:
        if not is_pattern(pattern):
            raise ValueError(pattern)
        for index, (known, held) in enumerate(self.entries):
            if known == pattern and held is value:
                del self.entries[index]
                self.version += 1
                return True
        return False

    def match(self, name: bytes) -> list[T]:
        """Return the values in the order of their first insert; the native order is another."""
        found: dict[int, T] = {}
        if is_name(name):
            for pattern, value in self.entries:
                if reaches(pattern, name):
                    found.setdefault(id(value), value)
        return list(found.values())

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def nodes(self) -> int:
        """Count the prefixes that a radix tree needs a node for: where a pattern ends, or where two part."""
        ends = {tuple(pattern.removesuffix(b">").strip(b".").split(b".")) for pattern, _ in self.entries}
        ends = {end for end in ends if end != (b"",)}
        following: dict[tuple[bytes, ...], set[bytes]] = {}
        for end in ends:
            for depth in range(1, len(end)):
                following.setdefault(end[:depth], set()).add(end[depth])
        return len(ends | {prefix for prefix, tokens in following.items() if len(tokens) > 1})
