"""Numbers with units, facts that are never broken, and rows that scripts can take apart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from broker.cli.top import text
from broker.cli.top.rates import Consumer, compare
from broker.cli.top.text import Fact, fill_lines
from tests.unit.cli.top.looks import change, reader, snapshot

EVIL = "a\x1b[2J\nb\u202e"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"), (0, "0"), (0.0, "0"), (0.4, "0.4"), (9.94, "9.9"), (9.96, "10"), (999, "999"), (1_234.4, "1,234"),
        (999_999, "999,999"), (1_000_000, "1.00 M"), (12_345_678, "12.3 M"), (2.5e9, "2.50 G"), (1e12, "1000 G"),
    ],
)  # fmt: skip
def test_counts(value: float | None, said: str) -> None:
    assert text.count(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"), (0, "0 B"), (999, "999 B"), (1_000, "0.98 KiB"), (1_536, "1.50 KiB"), (31.4 * 1024**2, "31.4 MiB"),
        (100 * 1024**3, "100 GiB"), (5 * 1024**4, "5.00 TiB"), (5_000 * 1024**4, "5000 TiB"),
    ],
)  # fmt: skip
def test_sizes(value: float | None, said: str) -> None:
    assert text.size(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"), (0, "0 µs"), (0.00085, "850 µs"), (0.0012, "1.20 ms"), (0.0314, "31.4 ms"), (1.0, "1.00 s"),
        (119.0, "119 s"), (120.0, "2 min"), (7_199.0, "120 min"), (7_200.0, "2.0 h"), (172_800.0, "2.0 d"),
    ],
)  # fmt: skip
def test_times(value: float | None, said: str) -> None:
    assert text.seconds(value) == said


def test_shares() -> None:
    assert [text.percent(1, 3), text.percent(None, 3), text.percent(1, None), text.percent(1, 0)] == ["33 %", *"---"]


def test_facts_are_spread_and_never_broken() -> None:
    facts = [Fact("aaaa"), Fact("bb"), Fact("c" * 20), Fact("dd")]
    for width in range(1, 40):
        lines = fill_lines(facts, width)
        assert [fact for line in lines for fact in line] == facts
        for line in lines:
            assert len(line) == 1 or len("  ".join(fact.text for fact in line)) <= width
    assert [len(line) for line in fill_lines(facts, 8)] == [2, 1, 1]
    assert [len(line) for line in fill_lines(facts, 7)] == [1, 1, 1, 1]
    assert fill_lines([], 10) == []


def said(**figures: Any) -> str:
    return " | ".join(fact.text for _, facts in text.sections(change(**figures)) for fact in facts)


def test_sections_say_what_is_known() -> None:
    found = said(records_in=3_000, groups=30, cpu_s=11.0, arriving_bytes=1_024)
    for words in (
        "in 1,000/s",
        "processor 50 %",
        "10 groups/s",
        "100 messages each",
        "commit p50 850 µs",
        "p99 12.3 ms",
        "loop lag p99 -",
        "10 % of 1.00 GiB",
        "arriving 1.00 KiB",
        "archive backlog 3.00 MiB",
    ):
        assert words in found.split(" | ")
    assert "kept" not in found, "this server does not tell"
    assert "held" not in found
    assert "blocked" not in found


def test_sections_say_what_is_wrong() -> None:
    found = said(publishers_held=3, publishes_refused_memory=4, archive_blocked=1, channels_full=5)
    for words in (
        "3 publishers held",
        "2 publishes refused/s",
        "archive blocked",
        "5 channels full, held by consumers",
    ):
        assert words in found.split(" | ")


@pytest.mark.parametrize(("mib", "style"), [(700, "bold"), (820, "bold yellow"), (973, "bold red")])
def test_memory_is_loud_when_publishers_feel_it(mib: int, style: str) -> None:
    assert text.memory_style(change(memory_used_bytes=mib << 20)) == style


def test_a_row_has_a_word_for_each_heading() -> None:
    heading = text.plain_heading().split()
    for row in (change(), change(records_in=None, memory_used_bytes=None), change((reader(),), records_in=10**7)):
        words = text.plain_row(row).split()
        assert len(words) >= len(heading)
        found = dict(zip(heading[:-1], words, strict=False))
        assert found["commit-p50"] == "850µs"
        assert found["in/s"] in ("0", "-", "5.00M")
    assert text.plain_row(change()).endswith("  -")


def test_the_row_names_who_is_most_behind() -> None:
    row = text.plain_row(change((reader(behind_groups=1), reader(behind_messages=1_234, filters=["s.x", "s.y"]))))
    assert "s.x s.y (phone 127.0.0.1:5000, connection 7 subscription 2): 1,234 messages, 2.50 s, since " in row


def test_how_far_a_reader_is_behind() -> None:
    assert text.behind(reader()) == "40 groups"
    assert text.behind(reader(behind_bytes=3 << 20)) == "40 groups, 3.00 MiB"
    assert text.behind(reader(behind_messages=1_234)) == "1,234 messages"


def test_words_of_strangers_are_escaped() -> None:
    row = text.plain_row(change((reader(name=EVIL, peer=EVIL, filters=[EVIL]),)))
    assert row.isprintable()
    assert row.count(r"a\x1b[2J\nb\u202e") == 3
    assert text.json_row(change((reader(name=EVIL),))).isprintable()


def test_an_object_has_the_servers_own_keys_and_what_follows_from_them() -> None:
    found = json.loads(text.json_row(change((reader(behind_bytes=5),), more=True, records_in=3_000)))
    assert found["stats"]["commit_p99_us"] == 12_300
    assert found["rates"]["records_in_per_s"] == 1_000.0
    assert found["more"] is True
    assert (found["elapsed_s"], found["restarted"]) == (2.0, False)
    assert found["time"] == "2023-11-14T22:15:02.000+00:00"
    (one,) = found["readers"]
    assert one["since"] == "2023-11-14T22:14:01.000+00:00"
    assert (one["behind_groups"], one["behind_messages"], one["behind_bytes"], one["policy"]) == (40, None, 5, None)
    assert one["filters"] == ["chat.>"]


def test_since_has_a_date_when_it_is_long_ago() -> None:
    assert text.since(change(), reader(since_s=86_400.0)).count("-") == 1
    assert text.since(change(), reader(since_s=86_399.0)).count(":") == 2


def test_jobs_are_told_when_there_are_consumers() -> None:
    assert "jobs" not in [label for label, _ in text.sections(change())]
    resize = {"name": "resize", "ready": 5, "delayed": 1, "lag": 4, "leased": 2, "acked": 100, "dead": 3, "members": 1}
    paused = {"name": "a\x1b", "paused": True, "acked": 7, "members": 0}
    before = snapshot(consumers=2, jobs_redelivered=10)
    before = replace(before, consumers=tuple(map(Consumer.of, (resize, paused))))
    after = snapshot(102.0, consumers=2, jobs_leased=2, jobs_redelivered=14, jobs_dead=0)
    after = replace(after, consumers=tuple(map(Consumer.of, ({**resize, "acked": 150}, {**paused, "acked": 3}))))
    found = compare(before, after)
    facts = dict(text.sections(found))["jobs"]
    assert [fact.text for fact in facts] == [
        "2 consumers",
        "2 jobs under way",
        "given out again 2/s",
        "given up 0/s",
        "resize: 25/s, 10 wait, 2 under way at 1 member, 3 given up",
        "a\\x1b: -/s, 0 wait, 0 under way at 0 members, paused",
    ]
    assert [fact.style for fact in facts[-2:]] == ["", "bold yellow"]
    told = json.loads(text.json_row(found))["consumers"]
    assert [(each["name"], each["waiting"], each["acked_per_s"]) for each in told] == [
        ("resize", 10, 25),
        ("a\x1b", 0, None),
    ]
