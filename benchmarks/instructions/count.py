"""Counts the instructions of works under `valgrind --tool=callgrind`.

Two runs on one machine give the same numbers, and so does another machine with the same compiler: nothing is timed,
valgrind shows every program the same addresses and every library the same processor, and the hash seed is fixed.

Of each work two numbers are compared: the instructions of our native modules themselves, and how often they call out of
themselves, into the interpreter, its allocator, the C library. What the others do then is told, not compared: how many
instructions an allocation takes depends on all that was allocated before, and on the build of Python.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).parents[2]
MICRO: Final = "benchmarks.micro"
OURS: Final = "/broker_native/"
TIMEOUT_S: Final = 600


class Uncountable(Exception):
    """Instructions cannot be counted here; the text says what is missing and how to get it."""


@dataclass(frozen=True)
class Count:
    """What one run of a work took.

    Attributes:
        own: instructions of the native modules themselves.
        calls: how often they called what is none of theirs.
        whole: instructions of all that ran.
        functions: instructions of each function of the native modules, without what it calls.
    """

    own: int
    calls: int
    whole: int = field(default=0, compare=False)
    functions: dict[str, int] = field(default_factory=dict, compare=False)


def modules() -> list[str]:
    """Return the names of the modules whose works are counted: one for each kernel."""
    paths = sorted((ROOT / "benchmarks" / "micro").glob("bench_*.py"))
    return [f"{MICRO}.{path.stem}" for path in paths if "\nWORKS = Works(" in path.read_text(encoding="utf-8")]


def compiler() -> list[str]:
    """Return the words of the compiler's command, as `setup.py` finds it."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def build_marks() -> Path:
    """Compile the marks into `build/instructions`, unless they are there.

    Raises:
        Uncountable: valgrind or its headers are missing.
    """
    if shutil.which("valgrind") is None:
        raise Uncountable("valgrind is not installed: `apt install valgrind` on Debian and Ubuntu")
    source = Path(__file__).with_name("marks.c")
    made = ROOT / "build" / "instructions" / f"marks-{sys.implementation.cache_tag}.so"
    if made.exists() and made.stat().st_mtime >= source.stat().st_mtime:
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
    command = [*compiler(), "-O2", "-fPIC", "-shared", *includes, str(source), "-o", str(made)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise Uncountable(f"the marks do not compile: {told.stderr.strip()}")
    return made


def count(names: Sequence[str], only: str = "") -> dict[str, Count]:
    """Count all works of some modules.

    Args:
        names: modules that have WORKS.
        only: what the names of the works have in them; all works when it is empty.

    Raises:
        Uncountable: it is not possible here, or a work failed; the text is what was said.
    """
    marks = build_marks()
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'ext'}",
        "PYTHONHASHSEED": "0",
        "LC_ALL": "C",
    }
    with TemporaryDirectory() as folder:
        command = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            "--compress-strings=no",
            "--compress-pos=no",
            f"--callgrind-out-file={folder}/out",
            *(sys.executable, "-m", "benchmarks.instructions.counted", str(marks), only, *names),
        ]
        try:
            told = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as late:
            raise Uncountable(f"counting took more than {TIMEOUT_S} s") from late
        if told.returncode:
            raise Uncountable(f"counting failed with status {told.returncode}: {told.stderr.strip()[-2000:]}")
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        counts = dict(read_dump(path.read_text(encoding="utf-8", errors="replace")) for path in dumps)
        counts.pop("", None)
        return counts


def read_dump(text: str) -> tuple[str, Count]:
    """Return a work's name and its count from what callgrind has written of it."""
    mark = "desc: Trigger: Client Request:"
    name = next(line for line in text.splitlines() if line.startswith(mark))[len(mark) :].strip()
    calls = whole = 0
    functions: dict[str, int] = {}
    for where, function, instructions, called, times in costs(text):
        whole += instructions
        if OURS in where:
            functions[function] = functions.get(function, 0) + instructions
            calls += 0 if OURS in called else times
    return name, Count(sum(functions.values()), calls, whole, functions)


def costs(text: str) -> Iterator[tuple[str, str, int, str, int]]:
    """Yield (object, function, instructions, object that is called, how often) of each line of cost.

    A line after `calls=` says what the call has cost: that is counted where it was spent, so here it is 0.
    """
    where = function = called = ""
    times: int | None = None
    for line in text.splitlines():
        if line[:1].isdigit():
            yield where, function, int(line.split()[1]) if times is None else 0, called or where, times or 0
            called, times = "", None
        elif line.startswith("ob="):
            where = line[3:]
        elif line.startswith("fn="):
            function = line[3:]
        elif line.startswith("cob="):
            called = line[4:]
        elif line.startswith("calls="):
            times = int(line[6:].split()[0])
