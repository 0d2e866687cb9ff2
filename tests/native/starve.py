"""Calls without memory: each allocation of Python's allocators fails in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ALLOCATIONS_MAX = 1000


def refusals(prepare: Callable[[], Callable[[], object]]) -> int:
    """Fail the first allocation of a call, then only the second, and so on until the call finds all that it needs.

    Args:
        prepare: makes what the call works on, with memory, and returns the call.

    Returns:
        How many allocations failed, each with a MemoryError of the call.
    """
    fault = pytest.importorskip("_testcapi", reason="this Python came without its test module, which fails allocations")
    for allocation in range(ALLOCATIONS_MAX):
        call = prepare()
        fault.set_nomemory(allocation, allocation + 1)
        try:
            call()
        except MemoryError:
            continue
        finally:
            fault.remove_mem_hooks()
        return allocation
    pytest.fail("it still has no memory")
