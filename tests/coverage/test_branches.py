"""The rule that finds the author's branches in Cython's C, on a module of which every count is known."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.coverage import branches
from tests.coverage.branches import prepare
from tests.coverage.counts import read_native

if TYPE_CHECKING:
    from tests.coverage.counts import Native

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("gcov") is None, reason="counts are those of gcc on Linux"
)

# Each comment says how often the conditions of its line held and did not: `true/false`, in their order.
HEADER = """\
/* A header with branches of its own. */
#include <assert.h>
static inline int smaller(int left, int right) {
    assert(left < 1000);
    return left < right ? left : right + 1;  // 2/3
}
static inline int both(int left, int right) {
    if (left && right) return 1;  // 4/1 3/1
    while (left > 0) left--;  // 4/2
    return left;
}
"""

SOURCE = '''\
"""A module of which every count is known."""

cdef extern from "tiny.h" nogil:
    int smaller(int left, int right)
    int both(int left, int right)

cdef extern from *:
    """
    #define BROKER_DEBUG 1
    """
    const bint BROKER_DEBUG


cdef class Box:
    cdef bint full
    cdef int count


cdef inline int plain(int number, bint flag, Box box) except -1:
    cdef int left = 0
    if number > 3:  # 1/4
        left = 1
    elif number == 2:  # 1/3
        left = 2
    if flag:  # 4/1
        left += 1
    if not flag:  # 1/4
        left += 1
    if box.full:  # 0/5
        left += 1
    if not box.full:  # 5/0
        left += 1
    if number == 100:  # 0/5
        raise ValueError("a hundred")
    return left


cdef bint joined(int a, int b, int c) noexcept nogil:
    if a == 1 and (b == 2 or c == 3):  # 4/1 1/3 1/2
        return True
    if (a == 1 and b == 0) or (c == 7 and b == 1):  # 2/1 0/2 0/3 0/0
        return True
    return c == 3 and b != 2  # 0/3 0/0


cdef bint chained(int a, int b, int c) noexcept nogil:
    if 0 <= a < b:  # 4/1 2/2
        return 1 < c <= 9  # 1/1 1/0
    return not (a < b < c <= 9)  # 1/2 0/1 0/0


cdef int looped(int count, int limit) noexcept nogil:
    cdef int at, total = 0
    for at in range(count):  # 19/4
        total += at
        if total > limit:  # 1/18
            break
    while total > 10 and count > 0:  # 3/4 2/1
        total -= 10
        count = -1
    while True:
        if total >= 0:  # 5/0
            return total


cdef int chosen(int a, int b, int c) noexcept nogil:
    cdef int least = min(a, b, c)  # 2/3 1/4
    least = a if a > 3 else least  # 1/4
    if c in (1, 2, 3):  # 1/4 1/3 1/2
        least = 0
    if BROKER_DEBUG:
        least += 0
    if BROKER_DEBUG and a == 4:  # 1/4
        least = 1
    assert least < 1000 and a < 1000
    return least


def walked(items, pairs):
    total = 0
    for item in items:  # 5/4
        total += item
    for left, right in pairs.items():  # 3/4
        total += left * right
    return total + sum([item for item in items if item > 1])  # 3/4 1/2


def kept(int number, list names):
    cdef object found = None
    try:
        if number == 4:  # 1/4
            raise KeyError(number)
        found = names[number]
    except (KeyError, IndexError):
        found = "none"
    finally:
        if number > 2:  # 2/3
            found = str(found)
        total = 0
    with memoryview(b"1") as view:
        total += len(view)
    return found or (number < 2 and number != 1)  # 5/0 0/0 0/0


def run(int number, bint flag, int c):
    cdef Box box = Box()
    box.full = False
    both(number, c)
    return (
        smaller(2, number), plain(number, flag, box), joined(1 if number else 0, number, c),  # 4/1
        chained(number - 1, 2, c), looped(number * 2, 20), chosen(number, 2, c),
    )
'''

DRIVER = """\
import tiny
for number in range(5):
    tiny.run(number, number != 2, number if number < 4 else 0)
    tiny.kept(number, ["a", "b", "c"])
for items in [], [0, 1], (2,), iter([3, 4]):
    if not isinstance(items, list | tuple):
        tiny.walked(items, {})
    else:
        tiny.walked(items, dict.fromkeys(items, 1))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the module was built and driven as `make coverage` does it with ours."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "source").mkdir()
    (folder / "source" / "tiny.pyx").write_text(SOURCE)
    (folder / "source" / "tiny.h").write_text(HEADER)
    (folder / "source" / "__init__.py").write_text("")
    translate(folder)
    c_path = folder / "build" / "tiny.c"
    c_path.write_text(prepare(c_path.read_text()))
    flags = [f"-I{sysconfig.get_path('include')}", f"-I{folder / 'source'}", "-fPIC", "-O0", "-w", "--coverage"]
    subprocess.run(["gcc", *flags, "-c", "tiny.c", "-o", "tiny.o"], cwd=folder / "build", check=True)
    target = f"tiny{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["gcc", "-shared", "--coverage", "tiny.o", "-o", target], cwd=folder / "build", check=True)
    subprocess.run([sys.executable, "-c", DRIVER], cwd=folder / "build", check=True)
    return folder


def translate(folder: Path) -> None:
    """Let Cython write the C of the module, with the directives of `setup.py`."""
    program = (
        "from Cython.Compiler.Main import compile, CompilationOptions\n"
        "directives = {'boundscheck': True, 'wraparound': False, 'cdivision': True, 'optimize.use_switch': False}\n"
        "names = {'language_level': '3str', 'output_file': 'build/tiny.c'}\n"
        "options = CompilationOptions(compiler_directives=directives, **names)\n"
        "assert not compile('source/tiny.pyx', options).num_errors\n"
    )
    (folder / "build").mkdir()
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)


@pytest.fixture(scope="module")
def counted(tiny: Path) -> Native:
    return read_native(tiny / "build", tiny / "source")


def test_every_branch_is_counted_and_nothing_else(counted: Native) -> None:
    expected = {
        number: re.findall(r"\d+/\d+", note)
        for number, line in enumerate(SOURCE.splitlines(), 1)
        if (note := line.partition("# ")[2])
    }
    found: dict[int, dict[str, int]] = {}
    for branch in counted.sources["tiny.pyx"].branches.values():
        found.setdefault(branch.line, {})[branch.way] = branch.count
    pairs = {
        line: [f"{ways[f'{at} true']}/{ways[f'{at} false']}" for at in range(1, len(ways) // 2 + 1)]
        for line, ways in sorted(found.items())
    }
    assert pairs == expected


def test_every_branch_of_a_header_is_counted(counted: Native) -> None:
    """A compiler may turn a condition of our own C around, so that only the numbers are known, not which is which."""
    found: dict[int, list[int]] = {}
    for branch in counted.sources["tiny.h"].branches.values():
        found.setdefault(branch.line, []).append(branch.count)
    notes = {number: line.partition("// ")[2] for number, line in enumerate(HEADER.splitlines(), 1)}
    expected = {number: [int(count) for count in re.findall(r"\d+", note)] for number, note in notes.items() if note}
    assert {line: sorted(counts) for line, counts in found.items()} == {
        line: sorted(counts) for line, counts in expected.items()
    }


def test_every_condition_is_found(counted: Native) -> None:
    assert counted.unread == []


def test_preparing_twice_is_preparing_once(tiny: Path) -> None:
    prepared = (tiny / "build" / "tiny.c").read_text()
    assert prepare(prepared) == prepared


def test_c_of_another_form_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Cython that wrote its conditions otherwise would leave sources that look as if nobody decided anything."""
    monkeypatch.setattr(branches, "CONDITION", re.compile("never"))
    unread = read_native(tiny / "build", tiny / "source").unread
    assert any(line.endswith("if number > 3:  # 1/4") for line in unread)
    assert not any("BROKER_DEBUG:" in line or "while True" in line for line in unread)


def test_lines_are_counted_by_the_first_of_their_c(counted: Native) -> None:
    lines = {number: text.strip() for number, text in enumerate(SOURCE.splitlines(), 1)}
    ran = {lines[number]: count for number, count in counted.sources["tiny.pyx"].lines.items()}
    assert ran['raise ValueError("a hundred")'] == 0
    assert ran['found = "none"'] == 2
    assert ran["left = 2"] == 1
    assert ran["total += left * right"] == 3
    assert not any(text.startswith(("def ", "cdef class", "#")) for text in ran)
