"""The program that runs under callgrind: each work once unmarked, and once between marks.

It is started by `count.py` with a fixed environment and imports what it measures and little else. Everything is
prepared before anything is counted, since code that is instrumented runs fifty times as long. The first run of a work
settles what is settled once: symbols are bound, caches are filled, the interpreter has specialised its code. The
collector rests, for when it comes depends on all that was made before.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import random
import sys
from typing import TYPE_CHECKING

from benchmarks.works import SEED

if TYPE_CHECKING:
    from benchmarks.works import Run, Work


def works_of(modules: list[str]) -> list[Work]:
    """Return the works that some modules list."""
    return [work for module in modules for work in importlib.import_module(module).WORKS]


def prepare(work: Work) -> tuple[Run, Run]:
    """Return the run that settles, and the one that is counted."""
    draw_the_same()
    first = work.prepare()
    draw_the_same()
    return first, work.prepare() if work.once else first


def check(work: Work, result: int) -> None:
    """Demand the result; a count of wrong answers is none."""
    if result != work.result:
        sys.exit(f"{work.name}: got {result}, expected {work.result}")


def draw_the_same() -> None:
    """Let what is drawn at random, as the secret of a hash table is, be the same each time."""
    os.urandom = random.Random(SEED).randbytes


def main() -> None:
    """Count the works of the modules that are named; the first argument is the library of the marks."""
    library, only, *modules = sys.argv[1:]
    marks = ctypes.PyDLL(library)
    marks.count_run.argtypes = [ctypes.py_object, ctypes.c_char_p]
    marks.count_run.restype = ctypes.py_object
    gc.disable()
    ready = [(work, *prepare(work)) for work in works_of(modules) if only in work.name]
    marks.count_begin()
    for work, first, counted in ready:
        check(work, first())
        check(work, marks.count_run(counted, work.name.encode()))


if __name__ == "__main__":
    main()
