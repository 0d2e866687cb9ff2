"""Limits: every bound documents itself, refuses what is out of its range, and agrees with the others."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from broker.model.errors import ConfigError
from broker.model.limits import DESCRIPTORS_RESERVED, Limits
from broker.model.settings import settings_of

SETTINGS = settings_of(Limits)


def test_every_limit_documents_itself() -> None:
    assert list(SETTINGS) == [found.name for found in fields(Limits)]
    for name, described in SETTINGS.items():
        assert described.doc.endswith("."), name
        assert described.unit, name
        assert described.reloadable, name
        unit = "" if name.endswith("_per_s") else name.removesuffix("_max").rpartition("_")[2]
        assert {"bytes": "bytes", "s": "seconds"}.get(unit, described.unit) == described.unit


@pytest.mark.parametrize("name", SETTINGS)
def test_limit_beyond_its_range_is_refused_by_name(name: str) -> None:
    described = SETTINGS[name]
    assert described.low is not None
    assert described.high is not None
    for value in (described.low - 1, described.high + 1, float("nan"), float("inf")):
        with pytest.raises(ConfigError) as caught:
            replace(Limits(), **{name: value})  # type: ignore[arg-type]
        assert caught.value.detail == f"limits.{name}: got {value}, expected {described.accepted()}"


def test_defaults_and_small_are_legal_and_small_is_smaller() -> None:
    usual, small = Limits(), Limits.small()
    for name in SETTINGS:
        if getattr(usual, name):  # 0 stands for what open files leave, or for no bound
            assert getattr(small, name) < getattr(usual, name), name


def test_largest_frame_takes_a_largest_record() -> None:
    limits = Limits()
    assert limits.frame_bytes_max == 1024 * 1024 + 16 * 1024 + 64 * 1024
    assert replace(limits, payload_bytes_max=1).frame_bytes_max == 1 + 16 * 1024 + 64 * 1024


def test_ping_timeout_must_exceed_its_interval() -> None:
    assert replace(Limits(), ping_interval_s=44.9).ping_interval_s == 44.9
    with pytest.raises(ConfigError, match=r"limits\.ping_timeout_s: got 45\.0 seconds"):
        replace(Limits(), ping_interval_s=45.0)


def test_connection_must_have_room_for_a_largest_frame() -> None:
    limits = Limits()
    exact = replace(limits, connection_bytes_max=limits.frame_bytes_max)
    assert exact.connection_bytes_max == limits.frame_bytes_max
    with pytest.raises(ConfigError, match=r"limits\.connection_bytes_max"):
        replace(limits, connection_bytes_max=limits.frame_bytes_max - 1)


def test_half_frames_must_have_room_for_a_largest_frame() -> None:
    limits = Limits()
    exact = replace(limits, partial_bytes_max=8 + limits.frame_bytes_max)
    assert exact.partial_bytes_max == 8 + limits.frame_bytes_max
    with pytest.raises(ConfigError, match=r"limits\.partial_bytes_max"):
        replace(limits, partial_bytes_max=7 + limits.frame_bytes_max)


@pytest.mark.parametrize(
    ("connections_max", "descriptors_max", "expected"),
    [
        (0, 0, 1),
        (0, DESCRIPTORS_RESERVED, 1),
        (0, DESCRIPTORS_RESERVED + 1, 1),
        (0, DESCRIPTORS_RESERVED + 2, 2),
        (0, 1_024, 1_024 - DESCRIPTORS_RESERVED),
        (10, 1_024, 10),
        (10, DESCRIPTORS_RESERVED + 9, 9),
    ],
)
def test_connections_bound(connections_max: int, descriptors_max: int, expected: int) -> None:
    assert replace(Limits(), connections_max=connections_max).connections_bound(descriptors_max) == expected


def test_limits_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().channels_max = 1  # type: ignore[misc]
