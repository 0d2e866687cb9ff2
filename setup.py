"""Build the native extensions of `ext/broker_native`, one for each `.pyx`.

Modes, by environment, each with its own folder under `build/` so that none passes for another:

- release (default): optimised, no checks.
- `BROKER_DEBUG=1`: bounds checks, C asserts, the checks behind `if BROKER_DEBUG`; compiler warnings are errors.
- `BROKER_SANITIZE=1`: debug under AddressSanitizer and UndefinedBehaviorSanitizer.
- `BROKER_COVERAGE=1`: debug, not optimised, and gcc counts each branch for `tests/coverage` to read.

Besides: `BROKER_STRICT=1` makes warnings errors in a release build too, and `BROKER_ONLY=a,b` builds only the named
modules (`none`: none of them). `python setup.py annotate` writes Cython's account of what each line costs to
`build/annotate` and builds nothing.

`python setup.py preflight` needs nothing but the standard library and says in one line what this machine lacks for
a build. Every build asks the same first. There is no build without a compiler: a missing extension is an error.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from setuptools import Extension

NATIVE = Path("ext/broker_native")
FUZZ = Path("tests/fuzz")
PYTHON_VERSION_MIN = (3, 11)
CHECKED_MODES = ("coverage", "sanitize", "debug")

WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wtype-limits",
    # What Cython generates: Py_ssize_t for sizes, helpers that go unused, arguments that a signature demands.
    "-Wno-sign-conversion",
    "-Wno-unused-function",
    "-Wno-unused-parameter",
]


def flag(name: str) -> bool:
    """Say whether an environment variable is set to something but 0."""
    return os.environ.get(name, "") not in ("", "0")


def refuse(lack: str, remedy: str) -> NoReturn:
    """End the build in one line."""
    sys.exit(f"broker: {lack}; {remedy}")


def check_toolchain() -> None:
    """Compile one line, so that what is missing has a name before a compiler says it in a hundred."""
    if compiles("#include <Python.h>"):
        return
    if not compiles("#include <stdio.h>"):
        refuse(
            f"no working C compiler (tried `{shlex.join(compiler())}`)",
            "`apt install gcc libc6-dev` on Debian and Ubuntu, `xcode-select --install` on macOS",
        )
    version = sysconfig.get_python_version()
    refuse(
        f"no Python.h for Python {version} in {sysconfig.get_path('include')}",
        f"`apt install python{version}-dev` on Debian and Ubuntu",
    )


def check_python() -> None:
    """Say what the interpreter lacks for a virtual environment of its own."""
    version = sysconfig.get_python_version()
    if sys.version_info < PYTHON_VERSION_MIN:
        refuse(f"Python {version} is too old", "3.11 is the oldest: `make build PYTHON=python3.11`")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        refuse(f"Python {version} lacks {error.name}", f"`apt install python{version}-venv` on Debian and Ubuntu")


def compiler() -> list[str]:
    """Return the words of the compiler's command, as setuptools will find it."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def compiles(line: str) -> bool:
    """Say whether the compiler takes a file of one line."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text(f"{line}\nint probe(void) {{ return 0; }}\n")
        command = [*compiler(), *shlex.split(os.environ.get("CFLAGS", "")), "-c", source.name, "-o", "probe.o"]
        command += [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
        try:
            return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def sources() -> list[Path]:
    """Return the modules to build, all of them or those of BROKER_ONLY."""
    found = {path.stem: path for path in sorted(NATIVE.glob("*.pyx"))}
    only = {name for name in os.environ.get("BROKER_ONLY", "").split(",") if name}
    unknown = sorted(only - found.keys() - {"none"})
    if unknown:
        refuse(f"BROKER_ONLY names no module {', '.join(unknown)}", f"there are {', '.join(found)}")
    return [path for name, path in found.items() if not only or name in only]


def extensions(mode: str) -> list[Extension]:
    """Return the modules translated to C, with the flags of a mode."""
    from Cython.Build import cythonize
    from setuptools import Extension

    # As a system's header, so that the warnings are about our code: Python 3.12's own do not pass -Wconversion.
    compile_args, link_args = [*WARNINGS, f"-isystem{sysconfig.get_path('include')}"], []
    checked = mode in CHECKED_MODES
    # distutils passes -DNDEBUG, which would strip the asserts of hand-written C.
    # A report of what went wrong needs lines alone; with variables, compiling takes half as long again.
    compile_args += ["-Og", "-g1", "-UNDEBUG"] if checked else ["-O3", "-g0"]
    if mode == "debug" or flag("BROKER_STRICT"):
        compile_args.append("-Werror")
    if mode == "sanitize":
        link_args.append("-fsanitize=address,undefined")
        compile_args += [*link_args, "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
        # Instrumented code makes gcc see uninitialised values where there are none.
        compile_args.append("-Wno-maybe-uninitialized")
    if mode == "coverage":
        link_args.append("--coverage")
        compile_args += [*link_args, "-O0", "-g0", "-w"]

    def module(name: str, path: Path, folder: Path, more_args: list[str], objects: list[str]) -> Extension:
        return Extension(
            name,
            [str(path)],
            include_dirs=[str(NATIVE), str(folder)],
            define_macros=[("BROKER_DEBUG", "1" if checked else "0")],
            extra_compile_args=[*compile_args, *more_args],
            extra_link_args=link_args,
            extra_objects=objects,
            depends=[str(header) for header in sorted(folder.glob("*.h"))],
        )

    edges, counter = coverage_of(mode)
    wanted = [module(f"broker_native.{path.stem}", path, NATIVE, edges, counter) for path in sources()]
    if checked and mode != "coverage":
        wanted += [module(f"tests.fuzz.{path.stem}", path, FUZZ, [], []) for path in sorted(FUZZ.glob("*.pyx"))]
    modules: list[Extension] = cythonize(  # type: ignore[no-untyped-call]
        wanted,
        include_path=["ext", "."],
        # What each line costs is told by a strict build too, for the tests that look at it.
        annotate=mode == "annotate" or (mode == "release" and flag("BROKER_STRICT")),
        build_dir=f"build/{mode}",
        compiler_directives={
            "language_level": "3str",
            "boundscheck": checked,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": False,
            "freethreading_compatible": False,
            # A chain of `elif` remains one, so that each of its conditions has a count.
            "optimize.use_switch": mode != "coverage",
        },
        # Elsewhere a new process would begin with the main module, which is whatever builds us.
        nthreads=(os.cpu_count() or 1) if sys.platform == "linux" else 0,
    )
    if mode == "coverage":
        make_countable(modules)
    return modules


def coverage_of(mode: str) -> tuple[list[str], list[str]]:
    """Return the flags that have native code tell tests/fuzz where it walks, and the object that it tells it to."""
    if mode != "sanitize":
        return [], []
    counter = Path("build") / mode / "coverage.o"
    counter.parent.mkdir(parents=True, exist_ok=True)
    # Without the flag, or it would call itself.
    command = [*compiler(), "-O2", "-fPIC", "-c", str(FUZZ / "coverage.c"), "-o", str(counter)]
    subprocess.run(command, check=True)
    return ["-fsanitize-coverage=trace-pc"], [str(counter)]


def make_countable(modules: list[Extension]) -> None:
    """Prepare the C of the modules for counting; what has been prepared is left alone, so that it is not built anew."""
    # At hand whenever branches are counted, which is done in a checkout only.
    from tests.coverage import branches

    for path in [Path(os.fspath(source)) for module in modules for source in module.sources]:
        text = path.read_text()
        if (prepared := branches.prepare(text)) != text:
            path.write_text(prepared)


def build() -> None:
    """Hand the package to setuptools."""
    from setuptools import setup

    check_toolchain()
    mode = next((mode for mode in CHECKED_MODES if flag(f"BROKER_{mode.upper()}")), "release")
    setup(
        ext_modules=extensions(mode),
        options={"build": {"build_base": f"build/{mode}"}, "build_ext": {"parallel": str(os.cpu_count() or 1)}},
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["preflight"]:
        check_python()
        check_toolchain()
    elif sys.argv[1:] == ["annotate"]:
        extensions("annotate")
    else:
        build()
