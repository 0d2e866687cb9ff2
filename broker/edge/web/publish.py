"""`POST /v1/publish`: one message or many, to one channel.

A body of `application/json` is an object as `publish` of the JSON dialect (broker/wire/json.md §4). Any other is one
message's payload as it is, whose other members stand in the query: `curl --data-binary @photo.jpg …?channel=photos`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from broker.edge.web.api import json_answer
from broker.edge.web.arguments import Arguments
from broker.edge.web.drafts import Draft, take_draft
from broker.edge.web.rendering import dump
from broker.model.errors import BrokerError, error
from broker.wire.dialect import SAFE_MAX, Members, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.responses import Response

    from broker.bus import Bus
    from broker.edge.web.api import Call
    from broker.model.positions import Position
    from broker_native.outcomes import Receipt, Scheduled

__all__ = ["publish"]

ANSWER_S: Final = 30.0
"""How long a publish may take until it is answered."""
QUERY: Final = frozenset({"channel", "key", "message_id", "priority", "expires_s", "expect", "at", "delay_ms"})


async def publish(call: Call) -> Response:
    """Publish what the body holds."""
    limits = call.node.limits
    query = call.request.scope["query_string"]
    payload: bytes | None = None
    if call.request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        Arguments(query, frozenset())
        members = Members("body", parse(await call.body(2 * limits.frame_bytes_max)))
    else:
        members = Members("query", Arguments(query, QUERY).once())
        payload = await call.body(limits.payload_bytes_max)
    channel = members.text("channel")
    when, expect = take_when(members)
    drafts = take_drafts(members, payload)
    lent = await call.bus()
    async with lent as bus:
        try:
            async with asyncio.timeout(ANSWER_S):
                if when:
                    return json_answer(await schedule_all(bus, channel, drafts, when), 202)
                return json_answer(await publish_all(bus, channel, drafts, expect))
        except TimeoutError:
            raise error(
                "TIMEOUT",
                f"publish to {channel[:80]!a}: no answer within {ANSWER_S:g} s; it may be stored yet",
                "Repeat it if its messages have a message_id: then none is stored twice.",
            ) from None


def take_drafts(members: Members, payload: bytes | None) -> list[Draft]:
    """Take the messages of a body: `messages`, or the members of one.

    Raises:
        BrokerError: As of `take_draft`.
    """
    if "messages" not in members:
        return [take_draft(members, payload)]
    drafts = [take_draft(each) for each in members.objects("messages", 1)]
    members.done()
    return drafts


def take_when(members: Members) -> tuple[dict[str, float], Position | None]:
    """Take when the messages are to be published, nothing for now, and where the channel's head must be.

    Raises:
        RequestError: MALFORMED_FRAME; there are two of these.
    """
    given = [name for name in ("at", "delay_ms", "expect") if name in members]
    if len(given) > 1:
        raise members.wrong(given[1], f"left out beside `{given[0]}`")
    if "at" in members:
        return {"deliver_at": members.integer("at", SAFE_MAX) / 1_000_000}, None
    if "delay_ms" in members:
        return {"delay_s": members.integer("delay_ms", SAFE_MAX) / 1_000}, None
    return {}, members.position("expect") if "expect" in members else None


async def publish_all(bus: Bus, channel: str, drafts: list[Draft], expect: Position | None) -> bytes:
    """Publish messages, the first of them if the head is as expected; answers where they are stored.

    All of them are on their way in this very turn, so they stand one behind the other unless one is refused.
    """
    if expect is not None and len(drafts) > 1:
        raise error("MALFORMED_FRAME", "body: `expect` must be left out beside several messages")
    try:
        publications = [
            bus.publish(
                channel,
                draft.payload,
                headers=draft.headers,
                key=draft.key,
                priority=draft.priority,
                expiry_s=draft.expiry_s,
                id=draft.id,
                expect=expect,
            )
            for draft in drafts
        ]
    except ValueError as failure:
        raise error("INVALID_RECORD", f"message: {str(failure)[:120]}") from None
    outcomes = await asyncio.gather(*publications, return_exceptions=True)
    return dump(published(channel, receipts_of(outcomes)))


async def schedule_all(bus: Bus, channel: str, drafts: list[Draft], when: dict[str, float]) -> bytes:
    """Have messages published later; answers when."""
    publications = [
        bus.schedule(
            channel,
            draft.payload,
            id=draft.id,
            headers=draft.headers,
            key=draft.key,
            priority=draft.priority,
            expiry_s=draft.expiry_s,
            **when,
        )
        for draft in drafts
    ]
    outcomes: list[Scheduled] = receipts_of(await asyncio.gather(*publications, return_exceptions=True))
    fields: dict[str, object] = {"channel": channel, "count": len(outcomes), "due": outcomes[-1].due_us}
    fields["message_ids"] = [
        outcome.id if isinstance(outcome.id, str) else outcome.id.decode("utf-8", "backslashreplace")
        for outcome in outcomes
    ]
    if all(outcome.duplicate for outcome in outcomes):
        fields["duplicate"] = True
    return dump(fields)


def receipts_of(outcomes: Sequence[Any]) -> list[Any]:
    """Return what messages were answered.

    Raises:
        BrokerError: One was refused: the first such, which says how many others are stored all the same.
    """
    for at, outcome in enumerate(outcomes):
        if isinstance(outcome, BrokerError):
            if len(outcomes) > 1:
                stored = sum(not isinstance(each, BaseException) for each in outcomes)
                failure = type(outcome)(
                    outcome.code,
                    f"messages[{at}]: {outcome.detail}; {stored} of {len(outcomes)} messages are stored",
                    outcome.hint,
                    outcome.name,
                )
                failure.retry_after_ms = outcome.retry_after_ms
                raise failure from outcome
            raise outcome
        if isinstance(outcome, BaseException):
            raise outcome
    return list(outcomes)


def published(channel: str, receipts: list[Receipt]) -> dict[str, object]:
    """Return where messages are stored, as `published` of the JSON dialect."""
    runs: list[dict[str, object]] = []
    for receipt in receipts:
        last = runs[-1] if runs else None
        duplicate = receipt.duplicate
        if (
            last is not None
            and last["epoch"] == receipt.epoch
            and bool(last.get("duplicate")) == duplicate
            and int(str(last["first"])) + int(str(last["count"])) == receipt.sequence
        ):
            last["count"] = int(str(last["count"])) + 1
        else:
            runs.append({"epoch": receipt.epoch, "first": receipt.sequence, "count": 1})
            if duplicate:
                runs[-1]["duplicate"] = True
    for run in runs:
        run["epoch"] = str(run["epoch"])
    fields: dict[str, object] = {"channel": channel, **runs[-1], "count": len(receipts)}
    fields["position"] = str(receipts[-1].position)
    fields["level"] = int(receipts[-1].level)
    fields.pop("duplicate", None)
    if all(receipt.duplicate for receipt in receipts):
        fields["duplicate"] = True
    if len(runs) > 1:
        fields["runs"] = runs
    return fields
