"""No line of a `nogil` block calls into the interpreter: Cython's own account of each line's cost is the witness.

Cython refuses Python objects without the interpreter lock, but not calls that a reader takes for C and that are not,
nor error checks that take the lock back. Each of those shows as a score above 0 in the annotated listing.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "release" / "ext" / "broker_native"
LISTINGS = ROOT / "build" / "annotate" / "ext" / "broker_native"

TRANSLATED_TOGETHER_S = 10.0
"""Between a module's C and its listing, which one translation writes."""
LISTED = re.compile(r'<pre class="cython line score-(\d+)"[^>]*>.*?<span class="">(\d+)</span>: (.*?)</pre>')
OPENS_NOGIL = re.compile(r"\bnogil\b[^#]*:\s*$")
# C functions of the interpreter that are documented to need no lock; their name alone gives them a score.
LOCK_FREE = re.compile(r"\bPyMem_Raw\w+\(")


def costly_lines(listing: str) -> tuple[int, list[str]]:
    """Return how many lines of a listing stand in `nogil` blocks, and those of them that cost something."""
    opened_at: int | None = None
    walked = 0
    costly = []
    for found in LISTED.finditer(listing):
        code = html.unescape(re.sub(r"<[^>]+>", "", found[3]))
        indent = len(code) - len(code.lstrip())
        # A signature over several lines ends at its own indent, with its closing bracket.
        if opened_at is not None and code.strip() and indent <= opened_at and not code.lstrip().startswith(")"):
            opened_at = None
        if opened_at is None:
            if OPENS_NOGIL.search(code):
                opened_at = indent
            continue
        walked += 1
        if found[1] != "0" and not LOCK_FREE.search(code):
            costly.append(f"{found[2]}: score {found[1]}: {code.strip()}")
    return walked, costly


@pytest.fixture(scope="module")
def listings() -> list[Path]:
    """The listings of this checkout: those of a strict build, or made anew where a source has changed since.

    Translating everything once more takes as long as a tenth of the suite.
    """
    names = [path.stem for path in sorted((ROOT / "ext" / "broker_native").glob("*.pyx"))]
    if all(is_of_the_build(name) for name in names):
        return [BUILT / f"{name}.html" for name in names]
    subprocess.run([sys.executable, "setup.py", "annotate"], cwd=ROOT, check=True, capture_output=True)
    return [LISTINGS / f"{name}.html" for name in names]


def is_of_the_build(name: str) -> bool:
    """Whether a module's listing was made when it was translated for the last time, and no source is newer."""
    listing, translated = BUILT / f"{name}.html", BUILT / f"{name}.c"
    if not listing.exists() or not translated.exists():
        return False
    newest_s = max(path.stat().st_mtime for path in (ROOT / "ext" / "broker_native").glob("*.p[xy]*"))
    made_s = listing.stat().st_mtime
    return made_s >= newest_s and abs(made_s - translated.stat().st_mtime) < TRANSLATED_TOGETHER_S


def test_lines_without_the_lock_cost_nothing(listings: list[Path]) -> None:
    walked = 0
    complaints = []
    for path in listings:
        count, costly = costly_lines(path.read_text(encoding="utf-8"))
        walked += count
        complaints += [f"{path.stem}.pyx:{line}" for line in costly]
    assert complaints == []
    assert walked > 500, "the listings are no longer read as they are written"


def listing(*lines: tuple[int, str]) -> str:
    """Return lines as Cython lists them."""
    return "\n".join(
        f'<pre class="cython line score-{score}">&#xA0;<span class="">{number:03}</span>: {html.escape(code)}</pre>'
        for number, (score, code) in enumerate(lines, 1)
    )


def test_costly_line_is_found() -> None:
    text = listing((0, "cdef int sum(int* at) noexcept nogil:"), (0, "    cdef int total = 0"), (7, "    look(at)"))
    assert costly_lines(text) == (2, ["003: score 7: look(at)"])


def test_lines_outside_and_raw_memory_are_left_alone() -> None:
    text = listing(
        (9, "def sum(data):"),
        (3, "    with nogil:"),
        (5, "        at = PyMem_RawMalloc(8)"),
        (0, "        walk(at)"),
        (4, "    return total"),
    )
    assert costly_lines(text) == (2, [])
