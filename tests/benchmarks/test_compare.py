"""The comparison of two revisions: what is built and copied, what counts as slower, and one in a small repository."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.compare import Incomparable, Report, Side, copy_native, judge, main, native_sources, run_suite

if TYPE_CHECKING:
    from collections.abc import Mapping

OPTIONS = argparse.Namespace(limit=0.1, rounds=3, paths=["some"], pytest=[])


def side(name: str, times: Mapping[str, list[float]]) -> Side:
    return Side(name, Path(name), dict(times))


def judged(base: list[float], head: list[float]) -> Report:
    return judge(side("base", {"x": base}), side("head", {"x": head}), [], OPTIONS)


# --- What counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "slower"), [(1.0, False), (1.099, False), (1.101, True), (0.5, False)])
def test_ten_per_cent(head: float, slower: bool) -> None:
    assert bool(judged([1.0, 1.0], [head, head]).slower) == slower


def test_what_was_disturbed_does_not_count() -> None:
    report = judged([1.0, 7.0, 3.0], [9.0, 1.05, 4.0])
    (ratio,) = report.ratios
    assert (ratio.base_s, ratio.head_s, ratio.noise) == (1.0, 1.05, 6.0)
    assert report.slower == []


def test_a_lucky_moment_of_one_side_does_not_count() -> None:
    """The base was twice as fast once; each pair of rounds says that nothing has changed."""
    report = judged([2.0, 1.0, 2.0], [2.0, 2.0, 2.0])
    (ratio,) = report.ratios
    assert (ratio.ratio, ratio.paired) == (2.0, 1.0)
    assert report.slower == []
    assert judged([2.0, 1.0, 2.0], [3.0, 3.0, 3.0]).slower != []


def test_what_only_one_side_has_is_named() -> None:
    base, head = side("base", {"x": [1.0], "gone": [1.0]}), side("head", {"x": [1.0], "new": [1.0]})
    report = judge(base, head, [], OPTIONS)
    assert [ratio.name for ratio in report.ratios] == ["x"]
    assert report.only_head == ["new"]
    with pytest.raises(Incomparable, match="no benchmark in common"):
        judge(side("base", {"a": [1.0]}), side("head", {"b": [1.0]}), [], OPTIONS)


def test_the_slowest_comes_first_and_all_is_in_the_json() -> None:
    base = side("base", {"a": [1.0], "b": [1.0], "c": [1.0]})
    report = judge(base, side("head", {"a": [1.0], "b": [3.0], "c": [2.0]}), [], OPTIONS)
    told = json.loads(json.dumps(report.as_json()))
    assert [each["name"] for each in told["ratios"]] == ["b", "c", "a"]
    assert told["slower"] == ["b", "c"]
    assert (told["statistic"], told["limit"]) == ("min", 0.1)


# --- What is built ------------------------------------------------------------------------------------------------


@pytest.fixture
def natives(tmp_path: Path) -> tuple[Path, Path]:
    """Two checkouts with the same sources, the first of them built."""
    here, there = tmp_path / "here", tmp_path / "there"
    native = here / "ext" / "broker_native"
    native.mkdir(parents=True)
    (here / "setup.py").write_text("# builds\n")
    (native / "clock.h").write_text("/* time */\n")
    for name, text in {"a": "from broker_native.b cimport f\n", "b": "cimport broker_native.c\n", "c": ""}.items():
        (native / f"{name}.pyx").write_text(f"# body of {name}\n")
        (native / f"{name}.pxd").write_text(text)
    shutil.copytree(here, there)
    for name in "abc":
        (native / f"{name}.cpython-311.so").write_bytes(name.encode())
    return here, there


def test_declarations_are_followed(natives: tuple[Path, Path]) -> None:
    here, _ = natives
    names = {path.name for path in native_sources(here, "a")}
    assert names == {"setup.py", "clock.h", "a.pyx", "a.pxd", "b.pxd", "c.pxd"}


@pytest.mark.parametrize(
    ("changed", "copied"),
    [("a.pyx", "bc"), ("b.pyx", "ac"), ("b.pxd", "c"), ("c.pxd", ""), ("clock.h", ""), ("../../setup.py", "")],
)
def test_what_is_made_of_the_same_is_copied(natives: tuple[Path, Path], changed: str, copied: str) -> None:
    here, there = natives
    (there / "ext" / "broker_native" / changed).write_text("# other\n")
    assert [name for name in "abc" if copy_native(here, there, name)] == list(copied)
    assert {path.name[0] for path in there.rglob("*.so")} == set(copied)


def test_what_was_not_built_since_is_not_copied(natives: tuple[Path, Path]) -> None:
    here, there = natives
    os.utime(here / "ext" / "broker_native" / "a.cpython-311.so", (1, 1))
    assert not copy_native(here, there, "a")
    assert copy_native(here, there, "b")


# --- A repository -------------------------------------------------------------------------------------------------

BENCH = '''"""Works."""

from broker.kernel import kernel


def test_kernel(benchmark):
    benchmark(kernel)


def test_steady(benchmark):
    benchmark(sum, range(2000))
'''


INI = """[tool.pytest.ini_options]
python_files = ["bench_*.py"]
filterwarnings = ["error"]
asyncio_default_fixture_loop_scope = "function"
"""

VERSIONED = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two revisions; in the second the kernel takes ten times as long, and a benchmark has gone."""
    root = tmp_path / "repository"
    (root / "benchmarks" / "micro").mkdir(parents=True)
    (root / "broker").mkdir()
    (root / "broker" / "__init__.py").write_text('"""The broker."""\n')
    (root / "pyproject.toml").write_text(INI)
    (root / "setup.py").write_text('"""Builds nothing."""\n')
    (root / ".gitignore").write_text("/build/\n__pycache__/\n")
    git(root, "init", "--quiet")
    commit(root, 10_000, BENCH + "\n\ndef test_old(benchmark):\n    benchmark(sum, range(9))\n")
    commit(root, 100_000, BENCH + "\n\ndef test_new(benchmark):\n    benchmark(sum, range(9))\n")
    return root


def git(root: Path, *arguments: str) -> None:
    named = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *named, *arguments], cwd=root, check=True, capture_output=True)


def commit(root: Path, steps: int, bench: str) -> None:
    text = f'"""The kernel."""\n\n\ndef kernel():\n    return sum(range({steps}))\n'
    (root / "broker" / "kernel.py").write_text(text)
    (root / "benchmarks" / "micro" / "bench_kernel.py").write_text(bench)
    git(root, "add", "-A")
    git(root, "commit", "--quiet", "-m", "A revision")


@VERSIONED
def test_a_slower_revision_fails(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The benchmarks are those of this side on both, so that the new one has a base as well."""
    file = tmp_path / "compared.json"
    arguments = ["--base", "HEAD^", "--root", str(repository), "--rounds", "1", "--again", "0", "--json", str(file)]
    assert main(arguments) == 1
    told = json.loads(file.read_text())
    found = {each["name"].rpartition("::")[2]: each["ratio"] for each in told["ratios"]}
    assert found.keys() == {"test_kernel", "test_steady", "test_new"}
    # The machine may be busy, but hardly by so much.
    assert found["test_kernel"] > 2
    assert "benchmarks/micro/bench_kernel.py::test_kernel" in told["slower"]
    assert told["only_base"] == ["benchmarks/micro/bench_kernel.py::test_old"]
    out = capsys.readouterr().out
    assert "more than 10% slower: " in out
    assert "only at HEAD^ (" in out


@VERSIONED
def test_a_revision_that_is_none(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", "nowhere", "--root", str(repository)]) == 2
    assert "broker: git rev-parse" in capsys.readouterr().err
    assert main(["--base", "HEAD", "--root", str(repository), "--rounds", "0"]) == 2


@VERSIONED
def test_a_benchmark_that_fails_here_ends_the_comparison(repository: Path) -> None:
    """On the other side it is left out, and the others are compared."""
    bench = repository / "benchmarks" / "micro" / "bench_kernel.py"
    bench.write_text(
        "def test_good(benchmark):\n    benchmark(sum, [1])\n\n\ndef test_wrong(benchmark):\n    assert False\n"
    )
    here = Side("here", repository)
    with pytest.raises(Incomparable, match=r"here: the benchmarks fail[^?]*test_wrong"):
        run_suite(here, ["benchmarks/micro"], [], strict=True)
    run_suite(here, ["benchmarks/micro"], [], strict=False)
    assert {name.rpartition("::")[2] for name in here.times} == {"test_good"}


@VERSIONED
def test_a_suite_of_which_nothing_is_chosen_is_passed_over(repository: Path) -> None:
    here = Side("here", repository)
    run_suite(here, ["benchmarks/micro"], ["-k", "none_of_them"], strict=True)
    assert here.times == {}
