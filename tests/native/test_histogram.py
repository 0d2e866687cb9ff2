"""The latency histogram against a twin that keeps every value."""

import itertools
import pickle
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_native.histogram import RELATIVE_ERROR_MAX, VALUE_LIMIT, Histogram
from tests.reference.histogram import Histogram as Reference
from tests.reference.histogram import bucket_bounds

U64_MAX = 2**64 - 1
PERCENTS = (0, 0.000001, 1, 25, 50, 90, 99, 99.9, 99.99, 99.999999, 100)
BOUNDARIES = sorted(
    {0, 1, 2, 3, U64_MAX}
    | {(1 << bits) + delta for bits in range(2, 64) for delta in (-1, 0, 1)}
    | {3 * (1 << bits) + delta for bits in range(6, 40) for delta in (-1, 0, 1)}
)

# Every power of two is as likely as any other, as latencies are.
values = st.integers(0, 64).flatmap(lambda bits: st.integers(0, 2**bits - 1))
many_values = st.lists(values, min_size=1, max_size=60)


def recorded(given_values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in given_values:
        histogram.record(value)
    return histogram


def check_percentile(got: int, exact: int) -> None:
    if exact < 256:
        assert got == exact
    elif exact < VALUE_LIMIT:
        assert exact <= got < exact * (1 + RELATIVE_ERROR_MAX)
    else:
        assert got >= exact


def test_promises() -> None:
    assert RELATIVE_ERROR_MAX == 1 / 128
    assert VALUE_LIMIT == 2**40


@pytest.mark.parametrize("value", BOUNDARIES)
def test_one_value_at_a_boundary(value: int) -> None:
    histogram = recorded([value])
    assert (histogram.count, histogram.min, histogram.max, histogram.mean) == (1, value, value, float(value))
    assert list(histogram.buckets()) == Reference([value]).buckets()
    for percent in PERCENTS:
        assert histogram.percentile(percent) == value


def test_buckets_tile_the_range() -> None:
    """Each bucket begins where the one before it ends, and none is wider than promised."""
    previous_high = -1
    value, buckets = 0, 0
    while value < VALUE_LIMIT:
        low, high = bucket_bounds(value)
        histogram = recorded([low, high, U64_MAX])
        assert next(histogram.buckets())[2] == (2 if high < VALUE_LIMIT - 1 else 3)
        assert low == previous_high + 1
        assert (high - low) / max(low, 1) < RELATIVE_ERROR_MAX
        previous_high, value, buckets = high, high + 1, buckets + 1
    assert buckets == 4352


@given(given_values=many_values, percents=st.lists(st.floats(0, 100), max_size=5))
def test_same_as_twin(given_values: list[int], percents: list[float]) -> None:
    histogram, twin = recorded(given_values), Reference(given_values)
    assert histogram.count == len(given_values)
    assert histogram.min == min(given_values)
    assert histogram.max == max(given_values)
    assert histogram.mean == twin.mean
    assert list(histogram.buckets()) == twin.buckets()
    for percent in (*PERCENTS, *percents):
        got = histogram.percentile(percent)
        assert histogram.min <= got <= histogram.max
        check_percentile(got, twin.percentile(percent))


@given(parts=st.lists(many_values, min_size=1, max_size=5), order=st.randoms())
def test_merging_in_any_order_is_recording_all(parts: list[list[int]], order: random.Random) -> None:
    whole = recorded(list(itertools.chain(*parts))).to_bytes()
    histograms = [recorded(part) for part in parts]
    order.shuffle(histograms)
    merged = Histogram()
    for histogram in histograms:
        before = histogram.to_bytes()
        merged.merge(histogram)
        assert histogram.to_bytes() == before
    assert merged.to_bytes() == whole


@given(pairs=st.lists(st.tuples(values, st.integers(0, 20)), max_size=10))
def test_record_n_is_record_n_times(pairs: list[tuple[int, int]]) -> None:
    at_once, twin = Histogram(), Reference()
    for value, count in pairs:
        at_once.record_n(value, count)
        twin.record_n(value, count)
    assert at_once.to_bytes() == recorded(twin.values).to_bytes()


def test_percentile_ranks_are_exact() -> None:
    """99.9 / 100 * 1000 is 999.0000000000001 in floating point: rounding up would name the wrong value."""
    for count in (1, 2, 3, 10, 100, 200):
        histogram, twin = recorded(list(range(count))), Reference(list(range(count)))
        for permille in range(1001):
            assert histogram.percentile(permille / 10) == twin.percentile(permille / 10), (count, permille)
    thousand = recorded([1] * 999 + [2])
    assert thousand.percentile(99.9) == 1
    assert thousand.percentile(99.900001) == 2


def test_sum_beyond_64_bits() -> None:
    histogram = Histogram()
    for _ in range(3):
        histogram.record_n(U64_MAX, 2**32 - 1)
    histogram.record_n(0, 3)
    assert histogram.mean == 3 * (2**32 - 1) * U64_MAX / (3 * 2**32)
    assert Histogram.from_bytes(histogram.to_bytes()).mean == histogram.mean


def test_count_limit() -> None:
    histogram = recorded([7])
    for _ in range(62):
        histogram.merge(histogram)
    assert histogram.count == 2**62
    half = Histogram.from_bytes(histogram.to_bytes())
    before = histogram.to_bytes()
    with pytest.raises(OverflowError, match=f"limit {2**63 - 1}"):
        histogram.merge(half)
    assert histogram.to_bytes() == before


def test_empty() -> None:
    for histogram in (Histogram(), recorded([5]), Histogram.from_bytes(Histogram().to_bytes())):
        histogram.clear()
        assert histogram.count == 0
        assert list(histogram.buckets()) == []
        assert repr(histogram) == "<Histogram empty>"
        assert histogram.to_bytes() == Histogram().to_bytes()
        for ask in ("min", "max", "mean"):
            with pytest.raises(ValueError, match="empty"):
                getattr(histogram, ask)
        with pytest.raises(ValueError, match="empty"):
            histogram.percentile(50)
        histogram.record_n(5, 0)
        assert histogram.count == 0
        histogram.merge(recorded([9]))
        assert histogram.min == 9


def test_refusals() -> None:
    histogram = recorded([1])
    for percent in (-0.1, 100.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="range 0 to 100"):
            histogram.percentile(percent)
    for value in (-1, 2**64):
        with pytest.raises(OverflowError):
            histogram.record(value)
    for count in (-1, 2**32):
        with pytest.raises(OverflowError):
            histogram.record_n(1, count)
    with pytest.raises(TypeError):
        histogram.merge(None)  # type: ignore[arg-type]
    assert histogram.to_bytes() == recorded([1]).to_bytes()


def test_bytes_are_portable() -> None:
    """The format, byte by byte: what one release has written every later one must read."""
    golden = bytes.fromhex(
        "42485354 0100 07 28"
        "0400000000000000"
        "ffffffffffffffff 0000000000000000"
        "0000000000000000 fffffffffeffffff"
        "03000000"
        "00000000 0100000000000000"
        "80000000 0200000000000000"
        "ff100000 0100000000000000"
    )
    histogram = recorded([0, 128, 128, U64_MAX - 2**32])
    histogram = Histogram.from_bytes(histogram.to_bytes())
    expected_sum = 256 + U64_MAX - 2**32
    golden = golden[:16] + struct.pack("<QQ", expected_sum & U64_MAX, expected_sum >> 64) + golden[32:]
    assert histogram.to_bytes() == golden


@given(given_values=st.lists(values, max_size=60))
def test_bytes_round_trip(given_values: list[int]) -> None:
    histogram = recorded(given_values)
    data = histogram.to_bytes()
    assert len(data) == 52 + 12 * len(list(histogram.buckets()))
    for copy in (Histogram.from_bytes(bytearray(data)), pickle.loads(pickle.dumps(histogram))):
        assert copy.to_bytes() == data
        assert repr(copy) == repr(histogram)
        copy.merge(recorded([1, 300]))
        assert copy.to_bytes() == recorded([*given_values, 1, 300]).to_bytes()


@given(given_values=many_values, data=st.data())
def test_damaged_bytes_are_refused_or_consistent(given_values: list[int], data: st.DataObject) -> None:
    """No damage crashes it or makes it break its own invariants, whether or not it can be seen."""
    damaged = bytearray(recorded(given_values).to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        histogram = Histogram.from_bytes(damaged)
    except ValueError:
        return
    assert histogram.to_bytes() == damaged
    assert sum(count for _, _, count in histogram.buckets()) == histogram.count
    if histogram.count:
        assert histogram.min <= histogram.mean <= histogram.max
        assert histogram.percentile(100) == histogram.max


def packed(*, count: int, total: int, low: int, high: int, pairs: list[tuple[int, int]]) -> bytes:
    header = struct.pack("<4sHBBQQQQQI", b"BHST", 1, 7, 40, count, total & U64_MAX, total >> 64, low, high, len(pairs))
    return header + b"".join(struct.pack("<IQ", *pair) for pair in pairs)


LIES = {
    "no value in the header": packed(count=0, total=5, low=5, high=5, pairs=[(5, 1)]),
    "more values in the header": packed(count=2, total=10, low=5, high=5, pairs=[(5, 1)]),
    "a minimum without values": packed(count=0, total=0, low=5, high=0, pairs=[]),
    "a maximum without values": packed(count=0, total=0, low=U64_MAX, high=5, pairs=[]),
    "a sum without values": packed(count=0, total=1, low=U64_MAX, high=0, pairs=[]),
    "a count without buckets": packed(count=1, total=1, low=1, high=1, pairs=[]),
    "an empty bucket": packed(count=1, total=5, low=5, high=5, pairs=[(4, 0), (5, 1)]),
    "a bucket out of range": packed(count=1, total=5, low=5, high=5, pairs=[(4352, 1)]),
    "a bucket twice": packed(count=2, total=10, low=5, high=5, pairs=[(5, 1), (5, 1)]),
    "buckets out of order": packed(count=2, total=11, low=5, high=6, pairs=[(6, 1), (5, 1)]),
    "a minimum in another bucket": packed(count=1, total=5, low=4, high=5, pairs=[(5, 1)]),
    "a maximum in another bucket": packed(count=1, total=5, low=5, high=6, pairs=[(5, 1)]),
    "a minimum above the maximum": packed(count=1, total=257, low=257, high=256, pairs=[(256, 1)]),
    "a sum that is too small": packed(count=2, total=9, low=5, high=5, pairs=[(5, 2)]),
    "a sum that is too large": packed(count=2, total=11, low=5, high=5, pairs=[(5, 2)]),
    "2^63 values": packed(count=2**63, total=2**63, low=1, high=1, pairs=[(1, 2**63)]),
    "2^63 values in two buckets": packed(count=2**63, total=2**63, low=0, high=1, pairs=[(0, 1), (1, 2**63 - 1)]),
    "another magic": b"BHSX" + packed(count=1, total=5, low=5, high=5, pairs=[(5, 1)])[4:],
    "a later format": b"BHST\2\0" + packed(count=1, total=5, low=5, high=5, pairs=[(5, 1)])[6:],
    "another precision": b"BHST\1\0\6" + packed(count=1, total=5, low=5, high=5, pairs=[(5, 1)])[7:],
    "a byte too many": packed(count=1, total=5, low=5, high=5, pairs=[(5, 1)]) + b"\0",
}


@pytest.mark.parametrize("lie", LIES)
def test_bytes_that_contradict_themselves(lie: str) -> None:
    with pytest.raises(ValueError, match=r"^histogram: "):
        Histogram.from_bytes(LIES[lie])


def test_every_cut_is_refused() -> None:
    assert Histogram.from_bytes(packed(count=1, total=5, low=5, high=5, pairs=[(5, 1)])).max == 5
    data = recorded([1, 1000, 10**6]).to_bytes()
    for size in range(len(data)):
        with pytest.raises(ValueError, match="bytes"):
            Histogram.from_bytes(data[:size])
