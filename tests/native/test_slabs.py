"""Slabs: items do not overlap, come back zeroed, and what nobody uses goes back to the system."""

from __future__ import annotations

import ctypes
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.slabs import Slabs

SLAB, HEADER, STEP, ITEM_MAX, REGION, REGIONS_FROM = 65536, 128, 64, 1024, 2 << 20, 4 << 20


def write(address: int, size: int, byte: int) -> None:
    ctypes.memset(address, byte, size)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 63, 64, 65, 200, 256, 1023, 1024]), st.booleans()), max_size=200))
def test_items_are_apart_and_zeroed(steps: list[tuple[int, bool]]) -> None:
    heap, chance = Slabs(), random.Random(4770)
    kept: dict[int, int] = {}
    for size, give in steps:
        if give and kept:
            address = chance.choice(list(kept))
            assert ctypes.string_at(address, kept[address]) == bytes([kept[address] % 251 + 1]) * kept[address]
            del kept[address]
            heap.give(address)
            continue
        address = heap.take(size)
        assert address % STEP == 0
        assert ctypes.string_at(address, size) == bytes(size)
        write(address, size, size % 251 + 1)
        kept[address] = size
    assert heap.items == len(kept)
    for address in kept:
        heap.give(address)
    assert heap.mapped_bytes <= SLAB


@pytest.mark.parametrize("size", [1, 64, 65, 1024])
def test_a_slab_is_full_before_the_next_is_mapped(size: int) -> None:
    room = (SLAB - HEADER) // (-(-size // STEP) * STEP)
    heap = Slabs()
    items = [heap.take(size) for _ in range(room)]
    assert heap.mapped_bytes == SLAB
    items.append(heap.take(size))
    assert heap.mapped_bytes == 2 * SLAB
    assert len({item // SLAB for item in items}) == 2
    for item in items:
        heap.give(item)
    assert heap.items == 0
    assert heap.mapped_bytes == SLAB, "one is kept for the next"


@pytest.mark.parametrize("seed", range(4))
def test_a_region_that_was_made_ready_is_taken(seed: int) -> None:
    """At any moment of a heap's growth; an empty heap keeps none, and none is lost or given twice."""
    heap, chance = Slabs(), random.Random(seed)
    assert not heap.ahead(), "a small heap wants none"
    items: list[int] = []
    for _ in range(3):
        readied = 0
        while heap.mapped_bytes < REGIONS_FROM + 6 * REGION:
            before = heap.mapped_bytes
            items.append(heap.take(1024))
            assert ctypes.string_at(items[-1], 1024) == bytes(1024)
            write(items[-1], 1024, 0xAA)
            assert heap.mapped_bytes - before in (0, SLAB, REGION)
            if not chance.randrange(900):
                readied += heap.ahead()
                assert heap.ahead() == (heap.mapped_bytes >= REGIONS_FROM + REGION)
        assert readied
        assert len(set(items)) == len(items)
        chance.shuffle(items)
        while items:
            heap.give(items.pop())
        assert heap.mapped_bytes <= SLAB
        assert not heap.ahead()


def test_threads_make_regions_ready_while_others_are_taken() -> None:
    heap = Slabs()
    over = threading.Event()

    def make_ready() -> None:
        while not over.is_set():
            heap.ahead()

    threads = [threading.Thread(target=make_ready) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            items = [heap.take(1024) for _ in range(24_000)]
            assert len(set(items)) == len(items)
            for item in items:
                heap.give(item)
            assert heap.mapped_bytes <= SLAB
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not heap.ahead()


def test_others_drain_when_few_stay() -> None:
    heap, chance = Slabs(), random.Random(7)
    items = [heap.take(200) for _ in range(20_000)]
    chance.shuffle(items)
    for item in items[100:]:
        heap.give(item)
    assert heap.mapped_bytes <= 101 * SLAB
    again = [heap.take(200) for _ in range(20_000)]
    assert heap.mapped_bytes <= 101 * SLAB + REGION, "what is half full is filled first"
    for item in [*items[:100], *again]:
        heap.give(item)
    assert heap.mapped_bytes == SLAB


def test_a_heap_that_has_grown_grows_by_regions() -> None:
    """What is cut out of a region is full before the next one is taken, and goes back slab by slab."""
    room, heap = (SLAB - HEADER) // 256, Slabs()
    items = [heap.take(256) for _ in range(REGIONS_FROM // SLAB * room)]
    assert heap.mapped_bytes == REGIONS_FROM
    inside = [heap.take(256) for _ in range(REGION // SLAB * room)]
    assert heap.mapped_bytes == REGIONS_FROM + REGION
    assert {item // REGION for item in inside} == {inside[0] // REGION}
    beyond = heap.take(256)
    assert heap.mapped_bytes == REGIONS_FROM + 2 * REGION
    assert beyond // REGION != inside[0] // REGION
    for item in inside[: 3 * room]:
        write(item, 256, 7)
        heap.give(item)
    assert heap.mapped_bytes == REGIONS_FROM + 2 * REGION - 2 * SLAB, "one of them is kept for the next"
    for item in [*items, *inside[3 * room :]]:
        heap.give(item)
    assert heap.mapped_bytes == REGION + SLAB, "the last region has an item, and there is a slab for the next"
    heap.give(beyond)
    assert heap.items == 0
    assert heap.mapped_bytes == SLAB


@pytest.mark.parametrize("size", [0, ITEM_MAX + 1])
def test_sizes_have_a_range(size: int) -> None:
    with pytest.raises(ValueError, match="item: got"):
        Slabs().take(size)
