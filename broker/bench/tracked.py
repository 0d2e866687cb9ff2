"""A comparison in the form in which github-action-benchmark reads it: `python -m broker.bench.tracked compared.json`.

It reads what `broker bench compare --json` has written and prints a list for `tool: customBiggerIsBetter`: our rate at
each work, and how many times as good as each peer's every figure of it is. Of all of them more is better, latencies
included, since what is told of a latency is the ratio. A ratio is what to watch: both sides of it ran on one machine in
one hour, while the machines of a CI differ from day to day.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMAT: Final = 1
"""Of the comparison; another one may mean something else by the same words."""

OURS: Final = "broker"


def tracked(comparison: dict[str, Any]) -> list[dict[str, object]]:
    """Return the entries of a comparison, in the order of its works.

    Args:
        comparison: what `broker bench compare --json` has written.

    Raises:
        ValueError: it is something else, of another format, or not right: a curve has no place for a wrong figure.
    """
    try:
        if comparison["format"] != FORMAT:
            raise ValueError(f"format: got {comparison['format']!r}, expected {FORMAT}")
        wrong = [
            f"{row['work']}, {standing['contender']}: {error}"
            for row in comparison["rows"]
            for standing in row["standings"]
            for measurement in standing["rounds"]
            for error in measurement["errors"]
        ]
        if wrong:
            raise ValueError(f"the comparison is not right: {'; '.join(dict.fromkeys(wrong))}")
        return [entry for row in comparison["rows"] for entry in entries(row)]
    except (KeyError, TypeError, AttributeError) as failure:
        raise ValueError(f"not what `broker bench compare --json` writes: {failure!r}") from failure


def entries(row: dict[str, Any]) -> Iterator[dict[str, object]]:
    """Yield the entries of one work."""
    for standing in row["standings"]:
        extra = f"{standing['how']}; {standing['promise']}"
        if standing["contender"] == OURS:
            rate = standing["medians"].get("rate")
            if rate is not None:
                yield {
                    "name": f"{row['work']}: deliveries",
                    "unit": "1/s",
                    "value": round(rate, 1),
                    "range": span(rates(standing["rounds"])),
                    "extra": extra,
                }
        for figure, ratio in standing["ratios"].items():
            yield {
                "name": f"{row['work']}: {figure}, times {standing['contender']}",
                "unit": "times",
                "value": ratio,
                "extra": extra,
            }


def rates(rounds: Sequence[dict[str, Any]]) -> list[float]:
    """Return the deliveries a second of each round."""
    return [each["deliveries"] / each["seconds"] for each in rounds if each["seconds"]]


def span(values: Sequence[float]) -> str:
    """Return from where to where values reach."""
    return f"{min(values):,.0f} to {max(values):,.0f}" if values else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the status is 2 when there is nothing to be told."""
    parser = argparse.ArgumentParser(prog="python -m broker.bench.tracked", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("comparison", type=Path, help="what `broker bench compare --json` has written")
    options = parser.parse_args(arguments)
    try:
        told = tracked(json.loads(options.comparison.read_text(encoding="utf-8")))
    except (OSError, ValueError) as failure:
        print(f"broker: {options.comparison}: {failure}", file=sys.stderr)
        return 2
    print(json.dumps(told, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
