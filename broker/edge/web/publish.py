"""`POST /v1/publish`: one message or many, to one channel.

A body of `application/json` is an object as `publish` of the JSON dialect (broker/wire/json.md §4). Any other is one
message's payload as it is, whose other members stand in the query: `curl --data-binary @photo.jpg …?channel=photos`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from broker.edge.web.api import json_answer
from broker.edge.web.arguments import Arguments, wrong
from broker.edge.web.message_json import Draft, read_draft, read_integer, read_object, write_integer
from broker.edge.web.rendering import dump
from broker.model.errors import BrokerError, error
from broker.model.positions import Position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.responses import Response

    from broker.bus import Bus
    from broker.edge.web.api import Call
    from broker_native.outcomes import Receipt, Scheduled

__all__ = ["publish"]

MESSAGES_MAX: Final = 1_000
ANSWER_S: Final = 30.0
"""How long a publish may take until it is answered."""
OWN: Final = frozenset({"channel", "messages", "expect", "at", "delay_ms"})
QUERY: Final = frozenset({"channel", "key", "message_id", "priority", "expires_s", "expect", "at", "delay_ms"})


async def publish(call: Call) -> Response:
    """Publish what the body holds."""
    limits = call.node.limits
    if call.request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        Arguments(call.request.scope["query_string"], frozenset())
        fields = read_object(await call.body(2 * limits.frame_bytes_max))
    else:
        fields = query_fields(Arguments(call.request.scope["query_string"], QUERY))
        fields["payload"] = await call.body(limits.payload_bytes_max)
    channel = fields.get("channel")
    if not isinstance(channel, str):
        raise wrong("channel", channel, "a text")
    drafts = drafts_of(fields)
    lent = await call.bus()
    async with lent as bus:
        when = when_of(fields)
        try:
            async with asyncio.timeout(ANSWER_S):
                if when:
                    return json_answer(await schedule_all(bus, channel, drafts, when), 202)
                return json_answer(await publish_all(bus, channel, drafts, expect_of(fields)))
        except TimeoutError:
            raise error(
                "TIMEOUT",
                f"publish to {channel[:80]!a}: no answer within {ANSWER_S:g} s; it may be stored yet",
                "Repeat it if its messages have a message_id: then none is stored twice.",
            ) from None


def query_fields(arguments: Arguments) -> dict[str, Any]:
    """Return what a query says of a message whose payload is the body."""
    names = ("channel", "key", "message_id", "priority", "expires_s", "expect", "at", "delay_ms")
    return {name: value for name in names if (value := arguments.text(name)) is not None}


def drafts_of(fields: dict[str, Any]) -> list[Draft]:
    """Return the messages that a body describes.

    Raises:
        RequestError: MALFORMED_FRAME.
    """
    own = {name: value for name, value in fields.items() if name not in OWN}
    if "messages" not in fields:
        payload = own.pop("payload", None)
        if payload is not None and not isinstance(payload, bytes):
            raise wrong("payload", payload, "no member of this name")
        draft = read_draft(own, "")
        return [draft if payload is None else draft._replace(payload=payload)]
    messages = fields["messages"]
    if own:
        raise wrong(next(iter(own)), own[next(iter(own))], "no member of a message beside messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MESSAGES_MAX:
        raise wrong("messages", messages, f"an array of 1 to {MESSAGES_MAX} messages")
    drafts = []
    for at, each in enumerate(messages):
        if not isinstance(each, dict):
            raise wrong(f"messages[{at}]", each, "an object")
        drafts.append(read_draft(each, f"messages[{at}]."))
    return drafts


def expect_of(fields: dict[str, Any]) -> Position | None:
    """Return the position that the channel's head must be."""
    if "expect" not in fields:
        return None
    value = fields["expect"]
    if not isinstance(value, str):
        raise wrong("expect", value, "a position")
    return Position(0, 0) if value == "0:0" else Position.parse(value)


def when_of(fields: dict[str, Any]) -> dict[str, float]:
    """Return when the messages are to be published; nothing for now.

    Raises:
        RequestError: MALFORMED_FRAME; there are two times, or one beside `expect`.
    """
    given = [name for name in ("at", "delay_ms", "expect") if name in fields]
    if len(given) > 1:
        raise wrong(given[1], fields[given[1]], f"nothing of it beside {given[0]}")
    at = read_integer(fields, "at", "", 0, (1 << 53) - 1)
    delay_ms = read_integer(fields, "delay_ms", "", 0, (1 << 53) - 1)
    if at is not None:
        return {"deliver_at": at / 1_000_000}
    return {} if delay_ms is None else {"delay_s": delay_ms / 1_000}


async def publish_all(bus: Bus, channel: str, drafts: list[Draft], expect: Position | None) -> bytes:
    """Publish messages, the first of them if the head is as expected; answers where they are stored.

    All of them are on their way in this very turn, so they stand one behind the other unless one is refused.
    """
    if expect is not None and len(drafts) > 1:
        raise wrong("expect", str(expect), "nothing of it beside several messages")
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
        run["first"] = write_integer(int(str(run["first"])))
    fields: dict[str, object] = {"channel": channel, **runs[-1], "count": len(receipts)}
    fields["position"] = str(receipts[-1].position)
    fields["level"] = int(receipts[-1].level)
    fields.pop("duplicate", None)
    if all(receipt.duplicate for receipt in receipts):
        fields["duplicate"] = True
    if len(runs) > 1:
        fields["runs"] = runs
    return fields
