"""Which client the conversations of this folder are held with; `tests/blocking/` holds them with another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import broker

if TYPE_CHECKING:
    from tests.unit.client.scripted import Connect


@pytest.fixture
def connect() -> Connect:
    return broker.connect
