"""How a connection's way in ends, and what a credit reaches: what its twin has no word for."""

from __future__ import annotations

import pytest

from broker_native.fanout import Fanout, Subscription
from broker_native.intake import Clock, Intake, ReadBuffer
from broker_native.tails import Tails
from tests.reference.frames import CREDIT, CREDIT_BODY, PING, build_frame


class Heard(Intake):
    """Writes down the frames, and stops at one that says so."""

    def __init__(self) -> None:
        clock = Clock(manual=True)
        super().__init__(Fanout(Tails(1, 1)), ReadBuffer(4096), clock, 1000)
        self.bodies: list[bytes] = []
        self.credits: list[int] = []

    def on_read(self) -> None:
        """Nothing has to be kept alive."""

    def on_frame(self, kind: int, flags: int, body: bytes) -> None:
        self.bodies.append(body)
        if body == b"the last":
            self.stop()

    def on_credit(self, subscription: Subscription) -> None:
        self.credits.append(subscription.number)


def test_what_is_stopped_from_outside_keeps_nothing() -> None:
    intake = Heard()
    frame = build_frame(PING, b"12345678")
    intake.feed(frame + frame[:9])
    intake.stop()
    intake.feed(frame[9:] + frame)
    assert intake.bodies == [b"12345678"]


@pytest.mark.parametrize("behind", [b"", b"\0", build_frame(PING, b"behind"), build_frame(PING, b"behind")[:5]])
def test_nothing_behind_the_frame_that_ends_it_is_taken_or_kept(behind: bytes) -> None:
    intake = Heard()
    intake.feed(build_frame(PING, b"before") + build_frame(PING, b"the last") + behind)
    intake.feed(build_frame(PING, b"after"))
    assert intake.bodies == [b"before", b"the last"]


def test_a_credit_is_told_to_subscriptions_that_have_somebody_to_tell() -> None:
    intake = Heard()
    subscriptions = [Subscription(intake.outbox, number, 0, 0, False) for number in (1, 2)]
    intake.subscriptions = {subscription.number: subscription for subscription in subscriptions}
    subscriptions[0].behind = True
    for subscription in subscriptions:
        intake.feed(build_frame(CREDIT, CREDIT_BODY.pack(subscription.number, 0, 500)))
    assert [subscription.credit for subscription in subscriptions] == [500, 500]
    assert intake.credits == [1]
