"""The scripted conversations of the asyncio client, held with the blocking one: on the wire nobody can tell them apart.

Each test of theirs is a test here, but for those that look into what is asyncio's, which are named with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract import threaded
from tests.unit.client import test_ahead, test_client

if TYPE_CHECKING:
    from tests.unit.client.scripted import Connect

NOT_HERE = {
    "test_publishes_of_a_turn_leave_together_and_answers_come_in_any_order": "there are no turns",
    "test_what_was_not_answered_is_sent_again_under_its_number": "the same",
    "test_a_bus_that_is_closed_has_no_socket_left": "the socket of an asyncio transport; see test_client",
    "test_a_child_has_neither_the_bus_nor_its_socket": "the same; see test_forked",
}

_theirs = {**vars(test_client), **vars(test_ahead)}
# The fixtures that they take, `server` and `bus`, are in those modules as well.
globals().update(
    {name: value for name, value in _theirs.items() if name.startswith("test_") and name not in NOT_HERE},
    server=test_client.server,
    bus=test_client.bus,
)


@pytest.fixture
def connect() -> Connect:
    return threaded.connect


def test_what_is_left_out_exists() -> None:
    assert set(NOT_HERE) <= set(_theirs)
