"""One process that fuzzes one target, or replays a find. `run.py` starts it, watches it and tells what came of it.

It ends with a line of JSON when all went well. A crash, an exception or an execution that took too long leaves the
inputs of the target's world in the block, a file that is mapped into memory.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Before any module that is instrumented: they look for the engine's map of edges when they are loaded.
_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
from tests.fuzz import engine  # noqa: E402

sys.setdlopenflags(_flags)

from tests.fuzz import decoders, delivering, dialect, finds, seeds, targets  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
RSS_GROWTH_MIB_MAX = 64
WARM_SHARE = 10
"""After this part of its executions a worker's memory is what it should stay."""

SEEN = decoders.Seen(engine.note_feature)


@dataclass(frozen=True)
class Kind:
    """A target by name: how it is made, and what it begins with."""

    make: Callable[[], engine.Target]
    begin: Callable[[], list[bytes]]


def python(function: Callable[[memoryview], None], *, framed: bool = False) -> engine.Target:
    """Return a function as a target."""
    return engine.PythonTarget(function, framed)


KINDS = {
    "publish": Kind(targets.PublishTarget, seeds.publish_bodies),
    "intake": Kind(targets.IntakeTarget, seeds.intake),
    "channels": Kind(targets.ChannelsTarget, seeds.channels),
    "session": Kind(lambda: python(decoders.session(SEEN, engine.pieces_of), framed=True), seeds.session),
    "chunk": Kind(targets.ChunkTarget, seeds.chunk),
    "reader": Kind(targets.ReaderTarget, seeds.reader),
    "posting": Kind(targets.PostingTarget, seeds.posting),
    "group": Kind(targets.GroupTarget, seeds.group),
    "page": Kind(targets.PageTarget, seeds.page),
    "tree": Kind(targets.TreeTarget, seeds.tree),
    "bodies": Kind(lambda: python(decoders.bodies(SEEN)), decoders.body_seeds),
    "dialect": Kind(lambda: python(dialect.conversation(SEEN)), dialect.seeds_of_texts),
    "settle": Kind(lambda: python(delivering.settle(SEEN)), delivering.settle_seeds),
    "state": Kind(lambda: python(delivering.state(SEEN)), delivering.state_seeds),
    "member": Kind(lambda: python(delivering.member(SEEN), framed=True), delivering.member_seeds),
    "transaction": Kind(lambda: python(delivering.transaction(SEEN), framed=True), delivering.transaction_seeds),
    "ids": Kind(lambda: python(delivering.ids(SEEN)), delivering.ids_seeds),
    "words": Kind(lambda: python(decoders.words(SEEN)), decoders.word_seeds),
    "settings": Kind(lambda: python(decoders.settings(SEEN)), decoders.setting_seeds),
    **{
        f"toy-{mistake}": Kind(lambda mistake=mistake: targets.ToyTarget(mistake), seeds.toy)  # type: ignore[misc]
        for mistake in ("none", "bound", "unchecked", "loop", "leak")
    },
}


def resident_mib() -> float:
    """This process's memory, MiB: what is resident now on Linux, the most that was elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MIB if sys.platform == "darwin" else peak / 1024
    return pages * resource.getpagesize() / MIB


def fuzz(target: str, seed: int, executions: int, seconds: float, block_path: str, keep: bool) -> None:
    """Execute inputs of one target, as many as asked or as the time allows, and print what came of it."""
    kind = KINDS[target]
    with Path(block_path).open("r+b") as file, mmap.mmap(file.fileno(), engine.BLOCK_BYTES) as block:
        run = engine.Engine(kind.make(), block, kind.begin() + finds.kept(target), seed)
        gc.collect()
        gc.freeze()
        started = time.monotonic()
        deadline_us = int((started + seconds) * 1e6)
        run.begin()
        run.run(executions // WARM_SHARE, int((started + seconds / WARM_SHARE) * 1e6))
        warm_mib = resident_mib()
        run.run(max(0, executions - run.executions), deadline_us)
        grown_mib = resident_mib() - warm_mib
        report = {
            "target": target,
            "seed": seed,
            "executions": run.executions,
            "seconds": round(time.monotonic() - started, 3),
            "cpu_s": round(time.process_time(), 3),
            "edges": run.edges,
            "fresh": len(run.fresh),
            "slowest_us": run.slowest_us,
            "grown_mib": round(grown_mib, 1),
        }
        if keep:
            finds.keep(target, run.fresh)
        # The engine holds on to the map.
        del run
    print(json.dumps(report), flush=True)
    if grown_mib > RSS_GROWTH_MIB_MAX:
        raise SystemExit(f"memory: grew by {grown_mib:.0f} MiB, limit {RSS_GROWTH_MIB_MAX} MiB")


def replay(path: str) -> None:
    """Execute what a find holds."""
    target, inputs = finds.read(Path(path))
    started = time.thread_time()
    KINDS[target].make().replay(inputs)
    taken_ms = (time.thread_time() - started) * 1000
    if len(inputs) == 1 and taken_ms > engine.EXECUTION_MS_MAX:
        raise engine.TooSlow(f"an execution took {taken_ms:.0f} ms, limit {engine.EXECUTION_MS_MAX} ms")
    print(f"{target}: {len(inputs)} inputs in {taken_ms:.0f} ms, and nothing happened", flush=True)


def main(words: list[str]) -> None:
    """Do what `run.py` asks."""
    if words[0] == "replay":
        replay(words[1])
    else:
        target, seed, executions, seconds, block_path, keep = words[1:]
        fuzz(target, int(seed), int(executions), float(seconds), block_path, keep == "keep")


if __name__ == "__main__":
    main(sys.argv[1:])
