"""Live lives from the command line: one to look at, or many.

    python -m tests.simulation --seed 7 --trace
    python -m tests.simulation --seeds 0:2000

Ends with status 1 when a life failed, and says how to replay it.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.simulation.bugs import BUGS, planted
from tests.simulation.life import Life
from tests.simulation.sealed import freeze


def main() -> int:
    """Do what is asked; return the exit status."""
    options = parse()
    freeze()
    seeds = range(options.seed, options.seed + 1) if options.seed is not None else parse_range(options.seeds)
    failed = 0
    begun_s = time.perf_counter()
    with planted(options.plant):
        for seed in seeds:
            failed += not live(seed, trace=options.trace, digest=options.digest or options.seed is not None)
    if len(seeds) > 1:
        took_s = time.perf_counter() - begun_s
        print(f"{len(seeds)} lives, {failed} failed, {took_s:.1f} s, {took_s / len(seeds) * 1e3:.1f} ms each")
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").partition("\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one life")
    which.add_argument("--seeds", metavar="A:B", help="lives A to B - 1")
    parser.add_argument("--trace", action="store_true", help="print everything that happens, a line each")
    parser.add_argument("--digest", action="store_true", help="print the hash of each life's trace")
    parser.add_argument("--plant", choices=[bug.__name__ for bug in BUGS], help="with this mistake in the product")
    return parser.parse_args()


def parse_range(text: str) -> range:
    """Return the seeds of A:B."""
    first, _, end = text.partition(":")
    return range(int(first), int(end))


def live(seed: int, *, trace: bool, digest: bool) -> bool:
    """Live one life and say what there is to say; returns whether it was a good one."""
    life = Life(seed)
    failure: BaseException | None = None
    try:
        life.run()
    except Exception as raised:
        failure = raised
    if trace:
        for line in life.kernel.lines():
            print(line)
    if digest:
        summary = str(life.verdict).partition("\n")[0]  # what follows is excused, or said by the failure
        print(f"seed {seed}: {life.kernel.digest()} {len(life.kernel.trace)} entries, {summary}")
    if failure is not None:
        print(f"seed {seed} FAILED", *traceback.format_exception(failure), sep="\n", flush=True)
    return failure is None


if __name__ == "__main__":
    sys.exit(main())
