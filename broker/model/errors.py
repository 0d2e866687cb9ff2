"""Every error that the broker raises or sends, in one registry with stable codes.

A code never changes its meaning and is never used again. Its thousand says what a client should do:

    1xxx  retry     the same request may succeed later; nothing of it has happened
    2xxx  resume    connect or subscribe again and go on from the last position
    3xxx  stop      the request is wrong or forbidden; repeating it cannot help
    4xxx  storage   the disk refused, is damaged, or the outcome is not known

The tree:

    BrokerError
    ├─ ConfigError (ValueError)   a setting or an address
    ├─ ProtocolError              the connection closes
    │  ├─ MalformedFrame
    │  └─ FrameTooLarge
    ├─ RequestError               one request is refused, the connection goes on
    │  ├─ InvalidChannel
    │  ├─ InvalidPattern
    │  ├─ Conflict
    │  └─ Denied
    ├─ Unavailable                retry or resume
    │  ├─ LimitExceeded
    │  └─ ConnectionLost
    └─ StorageError
       ├─ StorageFull
       ├─ StorageCorrupt
       └─ CommitUnknown

The classes are for `except`; `code` and `name` are the exact identity. A detail says what, got, limit and unit, for
instance `frame: got 2097153 bytes, limit 1048576 bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.model.positions import Position


class Remedy(StrEnum):
    """What a client should do about an error; the thousand of its code."""

    RETRY = "retry"
    RESUME = "resume"
    STOP = "stop"
    STORAGE = "storage"


_REMEDIES = (Remedy.RETRY, Remedy.RESUME, Remedy.STOP, Remedy.STORAGE)

REMEDY_MEANINGS: Mapping[Remedy, str] = MappingProxyType(
    {
        Remedy.RETRY: "Nothing has happened; the same request may succeed later.",
        Remedy.RESUME: "Connect or subscribe again, and go on from the last position.",
        Remedy.STOP: "The request is wrong or forbidden; repeating it cannot help.",
        Remedy.STORAGE: "The disk refused, is damaged or in use, or the outcome is not known; look before repeating.",
    }
)
"""What each remedy asks for, one sentence; also the hint of an error that this build does not know."""


class Scope(StrEnum):
    """What ends with an error."""

    CONNECTION = "connection"
    """The server says it and closes the connection."""
    REQUEST = "request"
    """One request or subscription is refused; the connection goes on."""
    EITHER = "either"
    """It names the request that it refuses, or it names none and the server closes the connection."""
    LOCAL = "local"
    """It is raised where it happens and never sent."""


def remedy_of(code: int) -> Remedy:
    """Return the remedy of a code, known or not.

    Args:
        code: any integer; a peer that is newer than this build may send one that the registry lacks.

    Returns:
        The remedy of its thousand; `Remedy.STOP` outside 1000-4999, since repeating what nobody understands is unsafe.
    """
    thousand = code // 1000
    return _REMEDIES[thousand - 1] if 1 <= thousand <= len(_REMEDIES) else Remedy.STOP


class BrokerError(Exception):
    """The root of everything that the broker raises on purpose.

    Attributes:
        code: the stable number, 1000-4999 (0-65535 when a peer sent it).
        name: the stable UPPER_SNAKE name that goes with the code.
        detail: what, got, limit, unit; one line for a person.
        hint: what to do about it; the registry's advice unless the error has more to say.
        retry_after_ms: when it makes sense to try again, milliseconds from now; None when nobody can tell. Whoever
            waits draws from half of it to one and a half of it, so that a crowd does not come back at once.
    """

    retry_after_ms: int | None = None

    def __init__(self, code: int, detail: str, hint: str | None = None, name: str | None = None) -> None:
        """Build an error of this very class; `error` picks the right class for a code.

        Args:
            code: a code of the registry, or a foreign one if `name` is given.
            detail: what, got, limit, unit.
            hint: what to do about it; None or empty for the registry's advice.
            name: the name that a peer sent with a code that the registry lacks; else taken from the registry.
        """
        advice = default_hint(code)
        # All of it goes into `args`, so that copying and pickling rebuild the same error. A hint that says no more than
        # the registry counts as none, whether it was given or came about.
        super().__init__(code, detail, hint if hint and hint != advice else None, name)
        self.code = code
        self.detail = detail
        self.name = BY_CODE[code].name if name is None else name
        self.hint = hint or advice

    @property
    def remedy(self) -> Remedy:
        """What a client should do: retry, resume, stop, or look at the storage."""
        return remedy_of(self.code)

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later without any change."""
        return self.remedy is Remedy.RETRY

    def __str__(self) -> str:
        return f"{self.name} ({self.code}): {self.detail}"


class ConfigError(BrokerError, ValueError):
    """A setting or an address is not acceptable."""


class ProtocolError(BrokerError):
    """The peer broke the protocol; the connection closes."""


class MalformedFrame(ProtocolError):
    """Bytes that are no legal frame, record or map."""


class FrameTooLarge(ProtocolError):
    """A frame declares more bytes than the handshake allows."""


class RequestError(BrokerError):
    """One request is refused; the connection goes on."""


class InvalidChannel(RequestError):
    """A name that no channel can have."""


class InvalidPattern(RequestError):
    """A filter that is neither a channel's name nor a pattern."""


class Conflict(RequestError):
    """A conditional publish lost: the channel's newest message is another one than it expected.

    Attributes:
        head: The position of the newest message, (0, 0) while there never was one; None where nobody has told it.
        index: Which publish of its transaction found it, from 0.
    """

    head: Position | None = None
    index: int = 0


class Denied(RequestError):
    """The identity may not do that to this name."""


class Unavailable(BrokerError):
    """Not now, or not on this connection: retry or resume as `remedy` says."""


class LimitExceeded(Unavailable):
    """A bound of the profile or of the server's memory is reached."""


class ConnectionLost(Unavailable):
    """The connection ended without a word; what was unacknowledged is retried or unknown."""


class StorageError(BrokerError):
    """The journal could not do it, or holds what it should not."""


class StorageFull(StorageError):
    """There is no room for the group; publishing recovers by itself when there is."""


class StorageCorrupt(StorageError):
    """Stored bytes fail their checksum or break the chain of groups."""


class CommitUnknown(StorageError):
    """The commit failed after it was handed to the disk: the records may or may not be stored."""


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One row of the registry.

    Attributes:
        code: the stable number.
        name: the stable UPPER_SNAKE name, as on the wire.
        summary: what has happened, in one clause.
        advice: what a person or a program does about it.
        kind: the class that is raised for it.
        scope: what ends with it.
    """

    code: int
    name: str
    summary: str
    advice: str
    kind: type[BrokerError]
    scope: Scope

    @property
    def remedy(self) -> Remedy:
        """What a client should do; follows from the code alone."""
        return remedy_of(self.code)


ERROR_CODES: tuple[ErrorCode, ...] = (
    ErrorCode(
        1001,
        "BUSY",
        "the server has more undecided work than it takes on",
        "Wait a moment and send it again; if it stays so, publish more slowly or raise the bound named in the detail.",
        Unavailable,
        Scope.EITHER,
    ),
    ErrorCode(
        1002,
        "STORAGE_FULL",
        "the disk or the storage's bound leaves no room for the group",
        "Free space on the file system of the data directory; publishing recovers by itself, and reading goes on.",
        StorageFull,
        Scope.REQUEST,
    ),
    ErrorCode(
        1003,
        "NUMBER_GAP",
        "a producer's number skips numbers that the server has not seen",
        "Send again from the first refused number on; clients of this project do so by themselves.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        1004,
        "COMMIT_REFUSED",
        "an earlier commit failed before this one was handed to the disk; nothing of it is stored",
        "Send it again under the same numbers.",
        StorageError,
        Scope.REQUEST,
    ),
    ErrorCode(
        1005,
        "TOO_MANY_CONNECTIONS",
        "the server holds as many connections as it may",
        "Connect later, or raise limits.connections_max and the limit of open files (ulimit -n).",
        Unavailable,
        Scope.CONNECTION,
    ),
    ErrorCode(
        1006,
        "LIMIT",
        "a bound of the profile or of the server's memory is reached",
        "Slow down and try again; the detail names the bound.",
        LimitExceeded,
        Scope.REQUEST,
    ),
    ErrorCode(
        1007,
        "TIMEOUT",
        "the answer did not come in time",
        "Try again; a publish keeps its number, so repeating it cannot store it twice.",
        Unavailable,
        Scope.EITHER,
    ),
    ErrorCode(
        1008,
        "UNAVAILABLE",
        "the journal is recovering and takes nothing yet",
        "Try again in a moment.",
        Unavailable,
        Scope.REQUEST,
    ),
    ErrorCode(
        1009,
        "NO_RESPONDERS",
        "nobody listens to what was asked, or waits for what was replied",
        "Start a subscriber of the channel that responds, or ask again when there is one.",
        Unavailable,
        Scope.REQUEST,
    ),
    ErrorCode(
        1010,
        "RATE_LIMITED",
        "a user, or an address, does more in a second than it may",
        "Wait as long as the error says, and do less at once.",
        LimitExceeded,
        Scope.EITHER,
    ),
    ErrorCode(
        2001,
        "GOING_AWAY",
        "the server drains and will close the connection",
        "Finish what is in flight, connect again and resume.",
        Unavailable,
        Scope.CONNECTION,
    ),
    ErrorCode(
        2002,
        "SLOW_CONSUMER",
        "a subscription fell behind whose profile allows none, or answers were not read",
        "Resume from the last position; consume faster or grant more credit.",
        Unavailable,
        Scope.CONNECTION,
    ),
    ErrorCode(
        2003,
        "CONNECTION_LOST",
        "the connection ended without a word",
        "Connect again, resume, and repeat what was not acknowledged under its numbers.",
        ConnectionLost,
        Scope.CONNECTION,
    ),
    ErrorCode(
        2004,
        "PRODUCER_TAKEN",
        "another connection took over this producer's line of numbers",
        "Let one connection publish for one producer; give the other one an identity of its own.",
        Unavailable,
        Scope.CONNECTION,
    ),
    ErrorCode(
        2005,
        "PING_TIMEOUT",
        "the peer was silent for longer than it may be",
        "Connect again and resume; look for a stalled event loop or a broken network path.",
        Unavailable,
        Scope.CONNECTION,
    ),
    ErrorCode(
        2006,
        "CONSUMER_TAKEN",
        "somebody else holds the exclusive consumer now",
        "Let one process hold it; whoever subscribes later takes over.",
        Unavailable,
        Scope.REQUEST,
    ),
    ErrorCode(
        2007,
        "TLS_FAILED",
        "no TLS came about with the peer, or it broke off",
        "The detail says what the one would not take of the other: a certificate, a name, a version, or no TLS at all.",
        Unavailable,
        Scope.CONNECTION,
    ),
    ErrorCode(
        3001,
        "MALFORMED_FRAME",
        "bytes arrived that are no legal frame",
        "The peer is no broker, or its encoder is wrong; the detail says which field.",
        MalformedFrame,
        Scope.CONNECTION,
    ),
    ErrorCode(
        3002,
        "FRAME_TOO_LARGE",
        "a frame declares more bytes than the handshake allows",
        "Send fewer records in a frame; the limit is frame_bytes_max of WELCOME.",
        FrameTooLarge,
        Scope.CONNECTION,
    ),
    ErrorCode(
        3003,
        "VERSION",
        "client and server share no version of the protocol",
        "Upgrade the older of the two.",
        ProtocolError,
        Scope.CONNECTION,
    ),
    ErrorCode(
        3004,
        "BAD_STATE",
        "the frame is not allowed at this point of the conversation",
        "The peer's state machine is wrong; the detail says what was expected.",
        ProtocolError,
        Scope.CONNECTION,
    ),
    ErrorCode(
        3005,
        "INVALID_CHANNEL",
        "the name can be no channel's",
        "Use dotted tokens of 1 to 128 printable ASCII characters, at most 255 bytes in all.",
        InvalidChannel,
        Scope.REQUEST,
    ),
    ErrorCode(
        3006,
        "INVALID_PATTERN",
        "the filter is neither a channel's name nor a pattern",
        "Use * for exactly one token and > for one or more at the end, each as a token of its own.",
        InvalidPattern,
        Scope.REQUEST,
    ),
    ErrorCode(
        3007,
        "NO_PROFILE",
        "no profile matches the channel",
        "Add a profile whose pattern matches it; the first match wins, so > comes last.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3008,
        "DENIED",
        "the identity may not do that to this name",
        "Ask for the right, or use a name that is not reserved.",
        Denied,
        Scope.REQUEST,
    ),
    ErrorCode(
        3009,
        "PAYLOAD_TOO_LARGE",
        "the payload is larger than the profile or the server takes",
        "Split it or send a reference to it; the limit is in the detail.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3010,
        "HEADERS_TOO_LARGE",
        "the packed headers are larger than the server takes",
        "Move the data into the payload.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3011,
        "INVALID_RECORD",
        "a record's fields do not fit its flags or its size",
        "The publisher's encoder is wrong; the detail says which field.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3012,
        "UNKNOWN_SUBSCRIPTION",
        "the connection has no subscription of that number",
        "Subscribe first; a subscription ends with its connection.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3013,
        "SUBSCRIPTION_IN_USE",
        "the connection has a subscription of that number already",
        "Choose a free number, or unsubscribe first.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3014,
        "INVALID_POSITION",
        "the start of a subscription is no position of this journal",
        "Take positions from deliveries, acknowledgements or SUBSCRIBED, and only from this journal.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3015,
        "TOO_MANY_CHANNELS",
        "a bound on channels is reached",
        "Use fewer channels, or raise the bound that the detail names.",
        RequestError,
        Scope.EITHER,
    ),
    ErrorCode(
        3016,
        "TOO_MANY_SUBSCRIPTIONS",
        "a connection or a subscription asks for more filters than it may",
        "Use patterns or a second connection, or raise the bound that the detail names.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3017,
        "UNKNOWN_OPERATION",
        "the server knows no such request",
        "Check the spelling and the server's version.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3018,
        "INVALID_CONFIG",
        "a setting is unknown, of the wrong type or out of its range",
        "Correct the setting that the detail names; `broker config show` lists all of them with their ranges.",
        ConfigError,
        Scope.LOCAL,
    ),
    ErrorCode(
        3019,
        "NUMBER_OVERLAP",
        "a publish begins at numbers that are stored and ends at new ones",
        "Repeat a publish with the same bounds as before; never merge old and new records.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3020,
        "CLOSED",
        "the broker, connection or subscription is closed",
        "Open a new one.",
        RequestError,
        Scope.LOCAL,
    ),
    ErrorCode(
        3021,
        "FORKED",
        "a handle was used in a child process that did not open it",
        "Open the broker after the fork.",
        RequestError,
        Scope.LOCAL,
    ),
    ErrorCode(
        3022,
        "ADDRESS",
        "the address is in use, malformed, or not loopback without authentication and TLS",
        "Choose another port or path, or listen on 127.0.0.1 or a Unix socket.",
        ConfigError,
        Scope.LOCAL,
    ),
    ErrorCode(
        3023,
        "CROSS_SHARD",
        "a transaction names channels of more than one shard",
        "Choose names that share their first tokens, as many as the profile's shard_tokens says.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3024,
        "CONFLICT",
        "a conditional publish expected another newest message of the channel",
        "Read on to the head that the error names, and decide anew.",
        Conflict,
        Scope.REQUEST,
    ),
    ErrorCode(
        3025,
        "NOT_STORED",
        "the operation needs a stored channel and this one is ephemeral",
        "Use a channel whose profile stores its messages.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3026,
        "UNKNOWN_CONSUMER",
        "there is no consumer of that name",
        "Create it first; `broker consumer ls` names those that there are.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3027,
        "INVALID_CONSUMER",
        "a consumer's name or settings are wrong",
        "Correct the setting that the detail names.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3028,
        "CONSUMER_EXISTS",
        "the consumer is there already, with other settings",
        "Ask for an update, or remove it first; filters and mode stay as they are.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3029,
        "LEASE_UNKNOWN",
        "this member has no such lease",
        "Settle each job once, by the subscription that was given it; after a restart jobs come again.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3030,
        "LEASE_EXPIRED",
        "the lease was over, and the job is somebody else's or waits for its next attempt",
        "Extend a lease in time, or let jobs be leased for longer.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3031,
        "INVALID_TIME",
        "a delay or a time is out of its range",
        "Choose a time within the range that the detail names.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3032,
        "UNKNOWN_MESSAGE",
        "no message with this id waits for its time in this channel",
        "It was published, cancelled or never scheduled; list what waits.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3033,
        "TRANSACTION_TOO_LARGE",
        "a transaction is larger than half of what commits together at most",
        "Publish less in one transaction, or raise limits.group_bytes_max.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3034,
        "INVALID_ID",
        "a message id is empty or longer than 64 bytes",
        "Use 1 to 64 bytes, or as many of UTF-8, that are the same each time the message is published.",
        RequestError,
        Scope.REQUEST,
    ),
    ErrorCode(
        3035,
        "UNAUTHENTICATED",
        "nobody knows who is at the other end, or what it signs in with is not good",
        "Connect with a token that this server accepts; `broker token explain` says what is wrong with one.",
        Denied,
        Scope.EITHER,
    ),
    ErrorCode(
        3036,
        "TOKEN_EXPIRED",
        "what the connection signed in with has ended or was taken back",
        "Get a fresh token and connect with it; positions stay good.",
        Denied,
        Scope.EITHER,
    ),
    ErrorCode(
        4001,
        "COMMIT_UNKNOWN",
        "the commit failed after it was handed to the disk; the records may or may not be stored",
        "Publish again under the same numbers: the answer says which; without numbers, read before repeating.",
        CommitUnknown,
        Scope.REQUEST,
    ),
    ErrorCode(
        4002,
        "STORAGE_CORRUPT",
        "stored bytes fail their checksum or break the chain of groups",
        "Keep a copy of the data directory, check the disk, and restore from a backup or a replica.",
        StorageCorrupt,
        Scope.EITHER,
    ),
    ErrorCode(
        4003,
        "STORAGE_FORMAT",
        "the directory is not a broker's, or was written by a newer version",
        "Name another directory, or run the version that wrote it.",
        StorageError,
        Scope.LOCAL,
    ),
    ErrorCode(
        4004,
        "STORAGE_IN_USE",
        "another process holds the data directory",
        "Stop that process, or connect to it instead of opening the directory.",
        StorageError,
        Scope.LOCAL,
    ),
    ErrorCode(
        4005,
        "STORAGE_FAILED",
        "the operating system refused a read or write of the data directory",
        "Check the disk, its permissions and its mount; the detail carries the system's own words.",
        StorageError,
        Scope.EITHER,
    ),
    ErrorCode(
        4006,
        "SERVER_FAILED",
        "the server that a shared directory needs could not be started",
        "Read server.log in the directory; `broker serve --data DIRECTORY` in a shell says the same.",
        StorageError,
        Scope.LOCAL,
    ),
)

BY_CODE: Mapping[int, ErrorCode] = MappingProxyType({row.code: row for row in ERROR_CODES})
BY_NAME: Mapping[str, ErrorCode] = MappingProxyType({row.name: row for row in ERROR_CODES})

# Which class stands for a code that a newer peer sends and this build does not know.
_FOREIGN: Mapping[Remedy, type[BrokerError]] = MappingProxyType(
    {
        Remedy.RETRY: Unavailable,
        Remedy.RESUME: Unavailable,
        Remedy.STOP: RequestError,
        Remedy.STORAGE: StorageError,
    }
)


def default_hint(code: int) -> str:
    """Return what to do about an error that says no more than its code.

    Args:
        code: any integer; of one that the registry lacks, the remedy of its thousand.
    """
    row = BY_CODE.get(code)
    return REMEDY_MEANINGS[remedy_of(code)] if row is None else row.advice


def error(
    code_or_name: int | str, detail: str, hint: str | None = None, *, retry_after_ms: int | None = None
) -> BrokerError:
    """Build the error of a code of the registry, in the class that stands for it.

    Args:
        code_or_name: a code or an UPPER_SNAKE name of the registry.
        detail: what, got, limit, unit; one line.
        hint: what to do about it, if there is more to say than the registry's advice.
        retry_after_ms: when to try again, milliseconds, if that can be told.

    Returns:
        The error, not raised.

    Raises:
        KeyError: the registry has no such row; a mistake in the calling code.
    """
    row = BY_NAME[code_or_name] if isinstance(code_or_name, str) else BY_CODE[code_or_name]
    failure = row.kind(row.code, detail, hint)
    if retry_after_ms is not None:
        failure.retry_after_ms = retry_after_ms
    return failure


def located(failure: BrokerError, where: str) -> BrokerError:
    """Return an error that says where it happened, else the same; not raised."""
    told = type(failure)(failure.code, f"{where}: {failure.detail}", failure.hint, failure.name)
    told.retry_after_ms = failure.retry_after_ms
    return told


def to_wire(failure: BrokerError) -> dict[str, object]:
    """Return the part of an ERROR frame's map that describes an error.

    Args:
        failure: the error; the caller adds the key that says what it concerns (`request`, `subscription`, …).

    Returns:
        A new dict with `code`, `name`, `detail`, if it says more than the registry's advice `hint`, and if it is known
        `retry_after_ms`.
    """
    body: dict[str, object] = {"code": failure.code, "name": failure.name, "detail": failure.detail}
    if failure.hint != default_hint(failure.code):  # the peer has the registry too
        body["hint"] = failure.hint
    if failure.retry_after_ms is not None:
        body["retry_after_ms"] = failure.retry_after_ms
    return body


def from_wire(body: Mapping[str, object]) -> BrokerError:
    """Rebuild an error from an ERROR frame's map.

    A code that this build does not know keeps the name that the peer gave it, and its thousand picks the class, so
    that an older client still retries, resumes or stops as it should.

    Args:
        body: the decoded map; keys besides `code`, `name`, `detail`, `hint` and `retry_after_ms` are passed over.

    Returns:
        The error that the peer meant, not raised.

    Raises:
        MalformedFrame: a field is missing or of the wrong type.
    """
    code, name, detail, hint = body.get("code"), body.get("name"), body.get("detail"), body.get("hint")
    if type(code) is not int or not 0 <= code <= 0xFFFF:
        raise error("MALFORMED_FRAME", f"ERROR: code is {code!r}, expected an integer from 0 to 65535")
    if not isinstance(name, str) or not isinstance(detail, str):
        raise error("MALFORMED_FRAME", f"ERROR {code}: name and detail must be text")
    if hint is not None and not isinstance(hint, str):
        raise error("MALFORMED_FRAME", f"ERROR {code}: hint must be text")
    after_ms = body.get("retry_after_ms")
    if after_ms is not None and (type(after_ms) is not int or not 0 <= after_ms <= 0xFFFFFFFF):
        raise error("MALFORMED_FRAME", f"ERROR {code}: retry_after_ms must be an integer from 0 to {0xFFFFFFFF}")
    row = BY_CODE.get(code)
    failure = _FOREIGN[remedy_of(code)](code, detail, hint, name) if row is None else row.kind(code, detail, hint)
    if after_ms is not None:
        failure.retry_after_ms = after_ms
    return failure
