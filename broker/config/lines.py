"""On which line of a TOML file a setting stands, which the parser of the standard library does not tell.

A valid file is assumed. What is written in one of TOML's rarer ways, a table within a line for instance, is found at
the line where that begins; a key inside a text of several lines is none.
"""

from __future__ import annotations

import re

_TABLE = re.compile(r"\s*(\[{1,2})\s*([^\]]+?)\s*\]")
_PART = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
_KEY = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=\s*(.*)", re.DOTALL)


def setting_lines(text: str) -> dict[str, int]:
    """Return the first line, from 1, of each table and key by its dotted name: `server.tcp`, `profiles[0].pattern`.

    Args:
        text: of a valid TOML file.
    """
    lines: dict[str, int] = {}
    arrays: dict[str, int] = {}
    table = ""
    ending = ""  # what closes the text of several lines that we are in
    for number, line in enumerate(text.split("\n"), 1):
        if ending:
            ending = "" if ending in line else ending
            continue
        if (found := _TABLE.match(line)) is not None:
            table = _plain(found[2])
            lines.setdefault(table, number)
            if found[1] == "[[":
                arrays[table] = arrays.get(table, -1) + 1
                table = f"{table}[{arrays[table]}]"
                lines[table] = number
        elif (found := _KEY.match(line)) is not None:
            names = [*([table] if table else []), *_plain(found[1]).split(".")]
            for depth in range(1, len(names) + 1):
                lines.setdefault(".".join(names[:depth]), number)
            for quotes in ('"""', "'''"):
                if found[2].startswith(quotes) and quotes not in found[2][3:]:
                    ending = quotes
    return lines


def _plain(name: str) -> str:
    """Return a dotted name without quotes and spaces around its parts."""
    return ".".join(part.strip().strip("\"'") for part in name.split("."))
