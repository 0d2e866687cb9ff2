"""The gate of instructions: what it reads, what it lets pass, and that a kernel that does more is found."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks.instructions.__main__ import RECORDED, main
from benchmarks.instructions.count import Count, Uncountable, count, modules, read_dump
from benchmarks.instructions.records import (
    Recorded,
    compare,
    earlier,
    format_tables,
    hardening,
    machine_key,
    read_tables,
    renew,
    unexplained,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.instructions.records import Finding

COUNTABLE = pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind: `apt install valgrind`")
PLANTED = "tests.benchmarks.planted"
NAMED = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
LINE = Recorded(1000, 100, "2026-11-23", "the first")

DUMP = """\
# callgrind format
desc: Timerange: Basic block 0 - 1053264
desc: Trigger: Client Request: rows.pack

positions: line
events: Ir
summary: 1000

ob=/usr/lib/libc.so.6
fl=???
fn=memcpy
10 200
12 100

ob=/x/ext/broker_native/rows.so
fn=pack
0 50
cob=/usr/lib/libc.so.6
cfn=memcpy
calls=7 10
0 300
cfn=crc
calls=3 0
0 90
0 20
fn=crc
0 90

ob=/usr/lib/libpython.so
fn=call
0 400
cob=/x/ext/broker_native/rows.so
cfn=pack
calls=1 0
0 460

totals: 860
"""


def test_a_dump_is_read_without_counting_what_calls_cost_twice() -> None:
    name, counted = read_dump(DUMP)
    assert name == "rows.pack"
    assert (counted.own, counted.calls, counted.whole) == (160, 7, 860)
    assert counted.functions == {"pack": 70, "crc": 90}


def test_lines_are_written_as_they_are_read() -> None:
    tables = {"b": {"x.y": LINE, "x.a": replace(LINE, reason='it\'s "quoted"')}, "a": {"x.y": LINE}}
    assert read_tables(format_tables(tables)) == tables


def test_a_line_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.y was recorded without a reason"):
        read_tables(format_tables({"a": {"x.y": replace(LINE, reason=" ")}}))


def verdicts(findings: Iterable[Finding]) -> dict[str, bool]:
    return {finding.name: finding.good for finding in findings}


@pytest.mark.parametrize(
    ("own", "calls", "good"),
    [
        (1000, 100, True),
        (1030, 103, True),
        (970, 97, True),
        (1031, 100, False),
        (969, 100, False),
        (1000, 104, False),
        (1000, 96, False),
    ],
)
def test_three_per_cent_up_or_down(own: int, calls: int, good: bool) -> None:
    assert verdicts(compare({"x.y": LINE}, {"x.y": Count(own, calls)})) == {"x.y": good}


def test_a_call_where_there_was_none_is_found() -> None:
    table = {"x.y": replace(LINE, calls=0)}
    assert verdicts(compare(table, {"x.y": Count(1000, 0)})) == {"x.y": True}
    assert verdicts(compare(table, {"x.y": Count(1000, 1)})) == {"x.y": False}


def test_what_is_new_or_gone_is_recorded_too() -> None:
    counts = {"x.new": Count(1, 1)}
    assert verdicts(compare({"x.gone": LINE}, counts)) == {"x.gone": False, "x.new": False}
    assert verdicts(compare({"x.gone": LINE}, {}, "other")) == {}


def test_recording_keeps_the_lines_of_what_has_not_changed() -> None:
    table = {"x.same": LINE, "x.slower": LINE, "x.gone": LINE, "other": LINE}
    counts = {"x.same": Count(1001, 100), "x.slower": Count(1100, 100), "x.new": Count(5, 6)}
    renewed = renew(table, counts, "2027-01-01", "more is checked", "x.")
    new = Recorded(1100, 100, "2027-01-01", "more is checked")
    assert renewed == {"x.same": LINE, "x.slower": new, "x.new": replace(new, own=5, calls=6), "other": LINE}


def test_a_count_that_changed_without_a_word_is_found() -> None:
    before = {"a": {"x.y": LINE, "x.z": LINE}, "b": {"x.y": LINE}}
    silent = {"a": {"x.y": replace(LINE, own=900), "x.z": LINE}, "b": {"x.y": replace(LINE, calls=1, reason="new")}}
    assert unexplained(before, silent) == ["a: x.y"]
    assert unexplained({}, silent) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("-Wsign-compare -DNDEBUG -g -fwrapv -O3 -Wall", []),
        ("-g -fwrapv -O2 -ffile-prefix-map=/build=. -fstack-protector-strong -Wformat", ["stack-protector-strong"]),
        ("-march=native -D_FORTIFY_SOURCE=2", ["D_FORTIFY_SOURCE=2", "march=native"]),
    ],
)
def test_how_python_was_built_is_part_of_the_key(flags: str, told: list[str]) -> None:
    assert hardening(flags) == told


def test_a_machine_without_records_is_told_how_to_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recorded.toml"
    file.write_text(format_tables({"m68k-gcc2-cpython3.11": {"x.y": LINE}}))
    assert main(["--file", str(file)]) == 0
    told = capsys.readouterr().out
    assert f"no instructions are recorded for {machine_key()}, only for m68k-gcc2-cpython3.11" in told
    assert "make instructions ARGS='--record" in told
    assert main(["--file", str(file), "--require"]) == 1


def test_nothing_is_recorded_without_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "recorded.toml"
    assert main(["--file", str(file), "--record"]) == 2
    assert main(["--file", str(file), "--record", "--reason", "  "]) == 2
    assert main(["--file", str(file), "--reason", "why"]) == 2
    assert not file.exists()


def test_without_valgrind_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Uncountable, match="apt install valgrind"):
        count([PLANTED])


def test_what_is_recorded_here_has_reasons() -> None:
    tables = read_tables(RECORDED.read_text(encoding="utf-8"))
    kernels = {module.rpartition("bench_")[2] for module in modules()}
    for key, table in tables.items():
        assert {name.partition(".")[0] for name in table} == kernels, key


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_an_earlier_revision_is_read(tmp_path: Path) -> None:
    file = tmp_path / "recorded.toml"
    assert earlier(file, "HEAD") == {}
    for line in (LINE, replace(LINE, own=2000)):
        file.write_text(format_tables({"a": {"x.y": line}}))
        for command in (["init", "--quiet"], ["add", "."], [*NAMED, "commit", "--quiet", "-m", "Counts"]):
            subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    assert earlier(file, "HEAD^") == {"a": {"x.y": LINE}}
    assert unexplained(earlier(file, "HEAD^"), earlier(file, "HEAD")) == ["a: x.y"]
    assert main(["--file", str(file)]) == 1


@COUNTABLE
def test_a_kernel_that_does_more_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A twentieth more is found; the same again, counted anew, is the same to the instruction."""
    file = tmp_path / "recorded.toml"
    arguments = ["--file", str(file), "--modules", PLANTED]
    assert main([*arguments, "--record", "--reason", "a first count"]) == 0
    table = read_tables(file.read_text())[machine_key()]
    plain, slower = table["planted.plain"], table["planted.slower"]
    assert 1.045 < slower.own / plain.own < 1.055
    file.write_text(format_tables({machine_key(): {"planted.plain": plain, "planted.slower": plain}}))
    assert main(arguments) == 1
    told = capsys.readouterr().out
    assert "1 of 2 works are not within 3%" in told
    assert "planted.slower\n" in told
    (line,) = [line for line in told.splitlines() if line.startswith("planted.plain")]
    assert line.split()[-2:] == ["+0.00%", "+0.00%"]
    assert "is_channel" in told
