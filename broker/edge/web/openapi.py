"""`GET /v1/openapi.json`: the HTTP API as a document that programs read (OpenAPI 3.1).

What it says is what the endpoints do: a test generates requests from it, right and wrong, and compares every answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from broker._version import __version__
from broker.edge.web.api import json_answer
from broker.edge.web.rendering import dump
from broker.model.consumers import CONSUMER_NAME_BYTES_MAX
from broker.node.seconds import SECONDS_MAX
from broker.wire.dialect import SAFE_MAX

if TYPE_CHECKING:
    from starlette.responses import Response

    from broker.edge.web.api import Call

__all__ = ["document", "openapi"]

NAME: Final = r"^[!#%-)+,\-/-=?-\[\]-~]{1,128}(\.[!#%-)+,\-/-=?-\[\]-~]{1,128})*$"
"""A channel's name; specification §7."""
SEQUENCE: Final = {"type": ["integer", "string"], "description": "Digits in a text past 2⁵³ − 1."}
POSITION: Final = {
    "type": "string",
    "pattern": r"^(0:0|[1-9][0-9]{0,18}:(0|[1-9][0-9]{0,18}))$",
    "description": "epoch:sequence; 0:0 is before the first message.",
}
BUS: Final = {
    "type": "string",
    "pattern": r"^[0-9a-f]{32}:(0|[1-9][0-9]{0,18}):(0|[1-9][0-9]{0,9})$",
    "description": "journal:group:index",
}
DELAY: Final = {"type": "integer", "minimum": 0, "maximum": 366 * 24 * 3_600_000, "description": "Milliseconds."}
TIME: Final = {"type": "integer", "minimum": 0, "maximum": 10**15, "description": "Microseconds since 1970-01-01 UTC."}
EPOCH: Final = {"type": "string", "pattern": r"^[0-9]+$"}
LEVEL: Final = {"type": "integer", "minimum": 1, "maximum": 4}
NAMED: Final = {"type": "string", "maxLength": 255, "pattern": NAME, "examples": ["chat.acme.42"]}


def ref(name: str) -> dict[str, str]:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a body that is JSON."""
    return {"application/json": {"schema": schema}}


def argument(name: str, schema: dict[str, Any], description: str, *, required: bool = False) -> dict[str, Any]:
    """Return an argument of the query."""
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def answers(ok: dict[str, Any], *refusals: int) -> dict[str, Any]:
    """Return the answers of an operation: these, and problems."""
    found: dict[str, Any] = dict(ok)
    for status in (400, 401, 403, 429, 500, 503, *refusals):
        found[str(status)] = {
            "description": "Refused; `code` and `name` say why.",
            "content": {"application/problem+json": {"schema": ref("Problem")}},
        }
        if status in (429, 503):
            found[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "string"}}}
    return found


def ok(schema: dict[str, Any], description: str) -> dict[str, Any]:
    """Return a good answer."""
    return {"200": {"description": description, "content": json_of(schema)}}


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return an object that has no other members."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def open_object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return an object that later versions may add members to."""
    return {"type": "object", "properties": properties, "required": list(required)}


TEXT: Final[dict[str, Any]] = {"type": "string"}
BASE64: Final[dict[str, Any]] = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
PAYLOADS: Final[tuple[dict[str, Any], ...]] = (
    {"text": {"type": "string", "description": "The payload as text."}},
    {"base64": {**BASE64, "description": "The payload as bytes."}},
    {"json": {"description": "A value whose compact JSON text is the payload."}},
)
"""A message has one of these at most."""
MEMBERS: Final[dict[str, Any]] = {
    "key": {
        "type": "string",
        "minLength": 1,
        "maxLength": 60,
        "description": "Up to 255 bytes; what is no UTF-8 stands in base64 in `key_base64`.",
    },
    "headers": {
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": ["string", "boolean", "null"], "maxLength": 200},
        "description": "Any values; msgpack as it is stands in base64 in `headers_base64`.",
    },
    "message_id": {
        "type": "string",
        "minLength": 1,
        "maxLength": 16,
        "description": "Up to 64 bytes: stored once; what is no UTF-8 stands in base64 in `message_id_base64`.",
    },
    "priority": {"type": "integer", "minimum": 0, "maximum": 3, "default": 2},
    "expires_s": {"type": "integer", "minimum": 1, "maximum": (1 << 32) - 1},
}
EXPECTING: Final[dict[str, Any]] = {name: each for name, each in MEMBERS.items() if name != "message_id"}
"""Of an id and a position that is expected one alone decides."""
STORED: Final[dict[str, Any]] = {
    "text": TEXT,
    "base64": BASE64,
    "key": TEXT,
    "key_base64": BASE64,
    "headers": {"type": "object"},
    "headers_base64": BASE64,
    "message_id": TEXT,
    "message_id_base64": BASE64,
    "priority": MEMBERS["priority"],
    "expires_s": MEMBERS["expires_s"],
    "seq": SEQUENCE,
    "time": {"type": "integer", "description": "Microseconds since 1970-01-01 UTC."},
    "publisher": TEXT,
    "gone": {"type": "string", "description": "There is no message any more, from `seq` on so many: `count`."},
    "count": {"type": "integer", "minimum": 1},
}
RUN: Final[dict[str, Any]] = {"epoch": EPOCH, "first": SEQUENCE, "count": {"type": "integer", "minimum": 1}}
HELD: Final[dict[str, Any]] = {"epoch": EPOCH, "first": SEQUENCE, "head": SEQUENCE, "level": LEVEL}
NEXT: Final[dict[str, Any]] = {
    "type": ["object", "null"],
    "additionalProperties": TEXT,
    "description": "The argument that the next page has; null behind the last.",
}


OBJECT: Final[dict[str, Any]] = {"type": "object"}
OBJECTS: Final[dict[str, Any]] = {"type": "array", "items": OBJECT}


def schemas() -> dict[str, Any]:
    """Return what bodies are made of."""
    problem = {name: TEXT for name in ("title", "detail", "name", "hint")}
    integer = {"type": "integer"}
    counters = ("lease_ms", "attempts_max", "members", "ready", "leased", "delayed", "acked", "redelivered", "dead")
    return {
        "Problem": open_object(
            {**problem, "status": integer, "code": integer, "retry_after_ms": integer, "head": POSITION},
            "title",
            "status",
            "detail",
            "code",
            "name",
            "hint",
        ),
        "Draft": {"anyOf": [closed({**payload, **MEMBERS}) for payload in PAYLOADS]},
        "Message": open_object(STORED, "seq"),
        "Delivery": open_object(
            {
                "channel": NAMED,
                "epoch": EPOCH,
                "position": POSITION,
                "bus": BUS,
                "early": {"const": True},
                "messages": {"type": "array", "items": ref("Message")},
            },
            "channel",
            "epoch",
            "position",
            "messages",
        ),
        "Publish": {
            "anyOf": [
                *(
                    closed({"channel": NAMED, **payload, **MEMBERS, **when}, "channel")
                    for payload in PAYLOADS
                    for when in ({"delay_ms": DELAY}, {"at": TIME})
                ),
                *(
                    closed({"channel": NAMED, **payload, **EXPECTING, "expect": POSITION}, "channel", "expect")
                    for payload in PAYLOADS
                ),
                closed(
                    {
                        "channel": NAMED,
                        "messages": {"type": "array", "items": ref("Draft"), "minItems": 1, "maxItems": 1024},
                        "delay_ms": DELAY,
                    },
                    "channel",
                    "messages",
                ),
            ]
        },
        "Published": open_object(
            {
                "channel": NAMED,
                **RUN,
                "position": POSITION,
                "level": LEVEL,
                "duplicate": {"const": True},
                "runs": {"type": "array", "items": open_object({**RUN, "duplicate": {"const": True}}, *RUN)},
            },
            "channel",
            *RUN,
            "position",
            "level",
        ),
        "Scheduled": open_object(
            {
                "channel": NAMED,
                "count": integer,
                "due": {"type": "integer", "description": "Microseconds since 1970-01-01 UTC."},
                "message_ids": {"type": "array", "items": TEXT},
            },
            "channel",
            "count",
            "due",
            "message_ids",
        ),
        "Page": open_object(
            {
                "channel": TEXT,
                "info": open_object(HELD, *HELD),
                "outcome": TEXT,
                "next": NEXT,
                "chunks": {"type": "array", "items": ref("Delivery")},
            },
            "channel",
            "next",
            "chunks",
        ),
        "Polled": open_object(
            {"position": {"type": "string"}, "deliveries": {"type": "array", "items": ref("Delivery")}},
            "position",
            "deliveries",
        ),
        "Channel": open_object({"name": TEXT, **HELD}, "name"),
        "Stats": open_object(
            {
                "ready": {"type": "boolean"},
                "troubles": {"type": "array", "items": ref("Trouble")},
                **dict.fromkeys(("server", "stats", "config"), OBJECT),
                **dict.fromkeys(("seconds", "readers", "connections", "consumers"), OBJECTS),
            },
            *("server", "ready", "troubles", "stats", "seconds", "readers", "connections", "consumers", "config"),
        ),
        "Trouble": open_object(
            {"name": TEXT, "serious": {"type": "boolean"}, "detail": TEXT, "advice": TEXT},
            *("name", "serious", "detail", "advice"),
        ),
        "Consumer": open_object(
            {"name": TEXT, "filters": {"type": "array", "items": TEXT}, **dict.fromkeys(counters, integer)},
            "name",
            "filters",
            *counters,
        ),
    }


def paths() -> dict[str, Any]:
    """Return the operations."""
    filters = {"type": "string", "maxLength": 255, "pattern": NAME, "examples": ["chat.acme.42"]}
    limit = {"type": "integer", "minimum": 1}
    listing = [
        argument("prefix", TEXT, "What the names begin with."),
        argument("after", TEXT, "Only names greater than this."),
    ]
    named = {"name": "name", "in": "path", "required": True, "schema": NAMED}
    read = argument("channel", filters, "A channel, or a pattern such as `chat.>`.", required=True)
    many = argument("channel", {"type": "array", "items": filters, "minItems": 1, "maxItems": 100}, "", required=True)
    many["description"] = "Channels and patterns; what several of them select comes once."
    since = argument("since", {"type": "integer", "minimum": 0, "maximum": SAFE_MAX}, "A time; also in ISO 8601.")
    return {
        "/v1/publish": {
            "post": {
                "operationId": "publish",
                "summary": "Publish one message or many to a channel, now or later.",
                "requestBody": {"required": True, "content": json_of(ref("Publish"))},
                "responses": answers(
                    {
                        **ok(ref("Published"), "Stored, as safely as the channel's profile promises."),
                        "202": {
                            "description": "It will be published at its time.",
                            "content": json_of(ref("Scheduled")),
                        },
                    },
                    *(404, 409, 413, 504, 507),
                ),
            }
        },
        "/v1/history": {
            "get": {
                "operationId": "history",
                "summary": "Read a page of what is stored.",
                "parameters": [
                    read,
                    argument("after", POSITION, "Behind this: a sequence, a position or, of a pattern, a bus."),
                    since,
                    argument("before", POSITION, "Before this: a sequence or a position."),
                    argument("until", {"type": "integer", "minimum": 0, "maximum": SAFE_MAX}, "Before this time."),
                    argument("last", {**limit, "maximum": 1000}, "The newest so many."),
                    argument("limit", {**limit, "maximum": 1000, "default": 100}, "Messages of the page."),
                    argument("reverse", {"enum": ["true", "false"], "type": "string"}, "The newest chunks first."),
                ],
                "responses": answers(ok(ref("Page"), "A page."), 404),
            }
        },
        "/v1/subscribe": {
            "get": {
                "operationId": "subscribe",
                "summary": "Read what is published: server-sent events, or by long poll with `wait`.",
                "parameters": [
                    many,
                    argument("after", POSITION, "Behind this place; a bus for patterns and several channels."),
                    since,
                    argument("last", limit, "Begin with the newest so many, of one channel."),
                    argument("from", {"enum": ["new", "start"], "type": "string"}, "Where to begin; new unless said."),
                    argument(
                        "wait",
                        {"type": "number", "minimum": 0, "maximum": 60},
                        "Answer with the first deliveries, or after so many seconds.",
                        required=True,
                    ),
                    {"name": "Last-Event-ID", "in": "header", "required": False, "schema": POSITION},
                ],
                "responses": answers(
                    {
                        "200": {
                            "description": "Deliveries; without `wait` a stream of them, each as an event.",
                            "content": {**json_of(ref("Polled")), "text/event-stream": {"schema": TEXT}},
                        }
                    },
                    404,
                    504,
                ),
            }
        },
        "/v1/channels": {
            "get": {
                "operationId": "channels",
                "summary": "List stored channels.",
                "parameters": [
                    *listing,
                    argument("limit", {**limit, "maximum": 1000, "default": 100}, "Names of the page."),
                    argument("details", {"enum": ["true", "false"], "type": "string"}, "Say what each holds."),
                ],
                "responses": answers(ok(paged("channels", "Channel"), "Names, ascending.")),
            }
        },
        "/v1/channels/{name}": {
            "get": {
                "operationId": "channel",
                "summary": "Say what a channel holds.",
                "parameters": [named],
                "responses": answers(ok(ref("Channel"), "What it holds."), 404),
            }
        },
        "/v1/consumers": {
            "get": {
                "operationId": "consumers",
                "summary": "List consumers and work queues.",
                "parameters": [*listing, argument("limit", {**limit, "maximum": 100, "default": 100}, "Of the page.")],
                "responses": answers(ok(paged("consumers", "Consumer"), "Consumers, ascending.")),
            }
        },
        "/v1/consumers/{name}": {
            "get": {
                "operationId": "consumer",
                "summary": "Say what there is to tell of a consumer or a work queue.",
                "parameters": [{**named, "schema": {**NAMED, "maxLength": CONSUMER_NAME_BYTES_MAX}}],
                "responses": answers(ok(ref("Consumer"), "What there is to tell."), 404),
            }
        },
        "/v1/stats": {
            "get": {
                "operationId": "stats",
                "summary": "Say how the broker is, and what is wrong with it; for who may manage everything.",
                "parameters": [
                    argument(
                        "seconds",
                        {"type": "integer", "minimum": 0, "maximum": SECONDS_MAX, "default": 0},
                        "Figures of the newest so many seconds.",
                    )
                ],
                "responses": answers(ok(ref("Stats"), "How it is.")),
            }
        },
    }


def paged(name: str, row: str) -> dict[str, Any]:
    """Return a page of a listing."""
    return open_object({name: {"type": "array", "items": ref(row)}, "next": NEXT}, name, "next")


def document() -> dict[str, Any]:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Broker",
            "version": __version__,
            "description": "Publish, read back and follow channels. Messages are those of the JSON dialect.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths(),
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


async def openapi(call: Call) -> Response:
    """Answer the document."""
    return json_answer(dump(document()))
