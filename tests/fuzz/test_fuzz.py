"""The fuzzer finds what is planted, replays what it found, and its seeds are good inputs.

The native half needs a checked build, as `make sanitize` and `make debug` make it: they run these tests, too.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from broker.model.errors import BrokerError
from tests.fuzz import decoders, finds, run, seeds

BUILDS = [Path(folder) for folder in sys.path if list(Path(folder).glob("tests/fuzz/engine*.so"))]
LIB = BUILDS[0].absolute() if BUILDS else Path()
SANITIZED = LIB.parent.name == "sanitize"

fuzzable = pytest.mark.skipif(not BUILDS, reason="there is nothing to fuzz but in a checked build: `make sanitize`")
sanitized = pytest.mark.skipif(not SANITIZED, reason="only a sanitizer sees it: `make sanitize`")

EXECUTIONS = 60_000
"""What a planted mistake may take to be found; it takes a tenth of it."""


def fuzz(target: str, folder: Path, monkeypatch: pytest.MonkeyPatch, executions: int = EXECUTIONS) -> run.Outcome:
    monkeypatch.setattr(run, "FINDS", folder)
    return run.work_through(run.plan([target], executions, None, 1, 2)[:1], LIB, 2)


# -- planted mistakes --------------------------------------------------------------------------------------------------


@fuzzable
@pytest.mark.parametrize(
    ("mistake", "word"),
    [
        pytest.param("bound", "heap-buffer-overflow", marks=sanitized),
        pytest.param("unchecked", "AddressSanitizer", marks=sanitized),
        ("loop", "limit 100 ms|no execution began"),
    ],
)
def test_a_planted_mistake_is_found_and_replays(
    mistake: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = fuzz(f"toy-{mistake}", tmp_path, monkeypatch)
    assert outcome.failures
    reports = [path for path in tmp_path.iterdir() if path.suffix == ".txt"]
    assert any(re.search(word, path.read_text(encoding="utf-8")) for path in reports)
    path = reports[0].with_suffix("")
    assert any(f"--replay {path}" in failure for failure in outcome.failures)
    target, inputs = finds.read(path)
    assert target == f"toy-{mistake}"
    assert len(inputs) == 1, "the last one does it alone"
    assert run.replay(path, LIB, strict=False).returncode != 0


@fuzzable
def test_a_planted_leak_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (failure, *_) = fuzz("toy-leak", tmp_path, monkeypatch, 400_000).failures
    assert "memory: grew by" in failure


@fuzzable
def test_a_hang_is_ended_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HANG_S", 0.2)
    outcome = fuzz("toy-loop", tmp_path, monkeypatch)
    assert any("no execution began" in failure or "limit 100 ms" in failure for failure in outcome.failures)


@fuzzable
def test_a_parser_without_a_mistake_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = fuzz("toy-none", tmp_path, monkeypatch)
    assert outcome.failures == []
    assert sum(report["executions"] for report in outcome.reports) >= EXECUTIONS * 9 // 10


@fuzzable
def test_a_seed_makes_the_same_executions_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def figures() -> str:
        reports = fuzz("publish", tmp_path, monkeypatch, 5_000).reports
        fields = ("seed", "executions", "edges", "fresh")
        return json.dumps(sorted([report[name] for name in fields] for report in reports))

    assert figures() == figures()


# -- every target ------------------------------------------------------------------------------------------------------


@fuzzable
@pytest.mark.parametrize("target", sorted(run.SHARES))
def test_a_target_takes_its_corpus(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = fuzz(target, tmp_path, monkeypatch, 100)
    assert outcome.failures == []
    if SANITIZED:
        assert all(report["edges"] for report in outcome.reports), "it walks code that is watched"


class Unwatched(decoders.Seen):
    """Nobody is told."""

    def __init__(self) -> None:
        super().__init__(lambda feature: None)


def test_the_seeds_of_the_decoders_are_good() -> None:
    for data in decoders.body_seeds():
        decode, _ = decoders.DECODERS[data[5]]
        decode(data[decoders.PLAN_BYTES :])


def test_the_seeds_of_conversations_are_answered_to_the_end() -> None:
    execute = decoders.session(Unwatched(), lambda data: [bytes(data[decoders.PLAN_BYTES :])])
    for data in seeds.session():
        execute(memoryview(data))


def test_a_value_that_does_not_survive_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [(decode, lambda value: b"x" * 8 + bytes([len(repr(value)) % 2])) for decode, _ in decoders.DECODERS]
    monkeypatch.setattr(decoders, "DECODERS", wrong)
    execute = decoders.bodies(Unwatched())
    with pytest.raises((AssertionError, BrokerError)):
        execute(memoryview(decoders.body_seeds()[0]))


def test_a_find_is_read_as_it_was_written(tmp_path: Path) -> None:
    inputs = [b"", b"one", bytes(1000)]
    path = finds.write(tmp_path / "finds", "intake", inputs)
    assert finds.read(path) == ("intake", inputs)
    path.write_bytes(b"something else")
    with pytest.raises(SystemExit, match="is no find"):
        finds.read(path)


def test_executions_are_spread_by_their_shares() -> None:
    slices = run.plan(list(run.SHARES), 10_000_000, None, 1, 2)
    assert 10_000_000 <= sum(work.executions for work in slices) < 10_000_100
    assert {work.target for work in slices if work.strict} == set(run.SHARES)
    assert len({(work.target, work.seed) for work in slices}) == len(slices)
