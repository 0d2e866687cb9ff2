"""The picture on terminals of all sizes, with nobody behind and with ten thousand."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from broker.cli.top.rates import Change, compare
from broker.cli.top.screen import Screen, Still, away_text, picture, status_text
from tests.unit.cli.top.looks import change, reader, snapshot

EVIL = "a\x1b[2Jb [red]c"


def drawn(found: Change, width: int = 100, height: int | None = 40, status: Text | None = None) -> list[str]:
    """Return the lines of a picture, without colours."""
    console = Console(file=StringIO(), width=width, height=height or 1_000, color_system=None)
    console.print(picture(found, "broker://host:1", status or Text("now"), width, height))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def crowd(count: int) -> Change:
    """Ten thousand lag, and the server told of the first `count`."""
    readers = tuple(reader(connection=number, behind_groups=count - number) for number in range(count))
    return change(readers, more=True, subscriptions_lagging=10_000)


def test_everything_is_on_it() -> None:
    lines = drawn(change((reader(behind_messages=1_234, policy="catchup"),), subscriptions_lagging=1), width=140)
    text = "\n".join(lines)
    assert lines[0] == "broker top  broker://host:1  run 3, process 4711"
    for label in ("messages", "latency", "commits", "memory", "clients", "behind"):
        assert any(line.startswith(f"{label} ") for line in lines)
    assert "1 of 1,000 subscriptions" in text
    heading, row = lines[-2:]
    assert heading.split() == ["behind", "late", "since", "reads", "who", "conn", "sub", "queued", "credit", "policy"]
    assert row.split()[:4] == ["1,234", "messages", "2.50", "s"]
    assert row.split()[5:] == ["chat.>", "phone", "127.0.0.1:5000", "7", "2", "2.00", "KiB", "0", "B", "catchup"]


def test_nobody_is_behind() -> None:
    lines = drawn(change())
    assert "0 of 1,000 subscriptions" in lines[-1]
    assert "more" not in lines[-1]


@pytest.mark.parametrize("width", [10, 20, 40, 60, 63, 64, 80, 100, 120, 200])
@pytest.mark.parametrize("height", [1, 5, 12, 24, 60])
def test_it_fits_whatever_the_size(width: int, height: int) -> None:
    lines = drawn(crowd(50), width, height)
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("broker to")
    if width >= 40 and height >= 24:
        assert len(lines) <= height


def test_a_low_terminal_counts_whom_it_leaves_out() -> None:
    lines = drawn(crowd(50), height=24)
    assert len(lines) == 24
    shown = sum("phone" in line for line in lines)
    assert 5 <= shown < 20
    assert lines[-1] == f"and {10_000 - shown:,} more"
    assert drawn(crowd(50), height=None)[-1] == "and 9,950 more"


def test_on_a_small_terminal_who_is_behind_is_seen_before_details() -> None:
    lines = drawn(crowd(50), 45, 14)
    assert len(lines) == 14
    assert sum("chat.>" in line for line in lines) == 3
    assert sum(line.startswith(" ") and "chat" not in line and "late" not in line for line in lines) == 0


def test_a_narrow_one_leaves_out_columns() -> None:
    headings = [drawn(crowd(3), width)[-5].split() for width in (40, 50, 64, 84)]
    assert headings == [
        ["behind", "late", "reads"],
        ["behind", "late", "since", "reads"],
        ["behind", "late", "since", "reads", "who"],
        ["behind", "late", "since", "reads", "who", "conn", "sub"],
    ]


def test_words_of_strangers_draw_nothing() -> None:
    lines = drawn(change((reader(name=EVIL, peer="", filters=[EVIL]),), pid=EVIL), width=200)
    assert "\x1b" not in "".join(lines)
    assert lines[-1].count(r"a\x1b[2Jb [red]c") == 2
    assert r"process a\x1b[2Jb [red]c" in lines[0]
    assert r"\x1b" in away_text(change(), 1.0, EVIL).plain


def test_the_status_says_how_the_looking_goes() -> None:
    assert "restarted" not in status_text(change(), 1.0).plain
    assert "every 0.5 s, Ctrl-C ends" in status_text(change(), 0.5).plain
    assert "the server has restarted" in status_text(change(run=4), 1.0).plain
    assert away_text(change(), 3.0, "it is gone").plain.startswith("no answer for 3.00 s")


def terminal() -> Console:
    return Console(file=StringIO(), force_terminal=True, width=100, height=30, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    console.file.seek(0)
    console.file.truncate()
    return text


def test_the_screen_is_taken_and_given_back() -> None:
    console = terminal()
    with Screen("url", 1.0, console) as screen:
        assert "\x1b[?1049h" in written(console)
        screen.redraw()
        screen.away(1.0, "nothing to draw yet")
        screen.first(compare(None, snapshot()))
        assert "in -/s" in written(console)
        screen.show(change(records_in=3_000))
        assert "in 1,000/s" in written(console)
        screen.away(4.0, "CONNECTION_LOST: it is gone")
        assert "no answer for 4.00 s" in written(console)
        screen.redraw()
        assert "no answer for 4.00 s" in written(console), "what is true is said in the new size too"
        screen.show(change())
        assert "no answer" not in written(console)
    assert "\x1b[?1049l" in written(console)


def test_a_still_picture_is_printed_whole_and_once() -> None:
    console = terminal()
    still = Still("url", console)
    still.first(compare(None, snapshot()))
    still.away(2.0, "not there")
    still.redraw()
    assert written(console) == ""
    still.show(crowd(50))
    text = written(console)
    assert text.count("phone") == 50, "nothing is left out for want of lines"
    assert "?1049" not in text
