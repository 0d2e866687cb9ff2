"""Every event that the broker logs, in one registry: its name, its level, its fields and what to do about it.

A record of the log is an event's name and typed fields, never a sentence, so that a program can count and alarm by
name and a person reads the sentence here (`broker events`). A name or a field never changes its meaning; a new field
may be added. `tests/unit/test_events.py` compares each call with this registry.

No field carries a payload, a header, a token or a setting that is secret. What a peer had a part in, a channel's name
or the text of an error, is a text field, and the output escapes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

RESERVED_FIELDS = frozenset({"time", "level", "event", "traceback", "suppressed", "failure"})
"""Names that the output or the call itself gives a meaning; no event has a field of that name."""


class Severity(StrEnum):
    """How much an event matters; names and order are those of `logging`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class FieldKind(StrEnum):
    """The type of a field's value in JSON; every one of them may be null."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event.

    Attributes:
        name: as in the output; a unit comes last.
        kind: of its value.
        meaning: one clause.
    """

    name: str
    kind: FieldKind
    meaning: str


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the registry.

    Attributes:
        name: stable, lower_snake.
        severity: fixed for the event.
        room: which part of the broker says it; `broker.<room>` is the logger's name.
        meaning: what has happened, one clause.
        advice: what an operator does about it.
        fields: each of them stands in every record of the event.
    """

    name: str
    severity: Severity
    room: str
    meaning: str
    advice: str
    fields: tuple[Field, ...] = ()


def _text(name: str, meaning: str) -> Field:
    return Field(name, FieldKind.TEXT, meaning)


def _integer(name: str, meaning: str) -> Field:
    return Field(name, FieldKind.INTEGER, meaning)


def _number(name: str, meaning: str) -> Field:
    return Field(name, FieldKind.NUMBER, meaning)


_CODE = _text("code", "name of the error, see `broker errors`")
_DETAIL = _text("detail", "what, got, limit, unit")
_HINT = _text("hint", "what to do about it")
_ERROR = _text("error", "the exception's type and text")
_RUN = _integer("run", "number of this run, counted up at every start")
_SEGMENT = _text("segment", "path of the journal's segment")

EVENTS: tuple[Event, ...] = (
    # -- the server's life
    Event(
        "ready",
        Severity.INFO,
        "server",
        "the server takes connections",
        "Nothing; a supervisor may wait for it.",
        (
            _text("version", "of the broker"),
            _integer("pid", "process id"),
            _RUN,
            _text("tcp", "address of the TCP listener, or null"),
            _text("unix", "path of the Unix socket, or null"),
            _text("web", "address of the web listener, or null"),
            Field("tls", FieldKind.BOOLEAN, "whether TLS is spoken at these addresses"),
            _text("data", "the data directory"),
            _number("after_s", "seconds from start to here"),
        ),
    ),
    Event(
        "stopping",
        Severity.INFO,
        "server",
        "a signal asked the server to drain and end",
        "Nothing; a second signal cuts the drain short.",
        (_number("drain_s", "seconds that connections get to finish"),),
    ),
    Event("stopped", Severity.INFO, "server", "the server has ended in good order", "Nothing.", (_RUN,)),
    Event(
        "idle",
        Severity.INFO,
        "server",
        "no connection has been open for so long that the server ends, as it was told to",
        "Nothing; whoever opens the shared directory next starts another.",
        (_number("idle_s", "seconds without a connection"),),
    ),
    Event(
        "socket_restored",
        Severity.WARNING,
        "server",
        "somebody had removed the Unix socket; there is a new one at the same path",
        "See what cleans that folder, and have it leave the socket alone.",
        (_text("unix", "path of the socket"),),
    ),
    Event(
        "server_failed",
        Severity.CRITICAL,
        "server",
        "the server cannot start or cannot go on; the process ends",
        "Follow the hint, then start it again.",
        (_CODE, _DETAIL, _HINT),
    ),
    Event(
        "reloaded",
        Severity.INFO,
        "server",
        "SIGHUP: the configuration was read again and taken",
        "Restart at leisure if `waiting` is not empty.",
        (_text("waiting", "changed settings that wait for a restart, separated by commas"),),
    ),
    Event(
        "reload_refused",
        Severity.ERROR,
        "server",
        "SIGHUP: the new configuration is not acceptable; the old one stays",
        "Correct it, try it with `broker config check`, and send SIGHUP again.",
        (_CODE, _DETAIL, _HINT),
    ),
    Event(
        "certificates_renewed",
        Severity.INFO,
        "server",
        "the files of the server's certificate have changed; new connections are met with what is in them now",
        "Nothing; connections that are open keep to what they began with.",
        (_text("certificate", "the file of the server's certificate"),),
    ),
    Event(
        "certificates_refused",
        Severity.ERROR,
        "server",
        "the files of the server's certificate have changed and cannot be used; the old ones serve on",
        "Correct them: they are looked at again when one of them changes. A certificate and its key belong together.",
        (_CODE, _DETAIL, _HINT),
    ),
    Event(
        "connections_refused",
        Severity.INFO,
        "server",
        "connections were ended with an error, counted by its code instead of logged one by one",
        "Look the code up with `broker errors`; a few are normal, a flood is a client's mistake or an attack.",
        (_CODE, _integer("count", "connections"), _number("within_s", "seconds in which they came")),
    ),
    # -- the shared home
    Event(
        "server_started",
        Severity.INFO,
        "client",
        "nobody served a shared directory, and a server was started for it",
        "Nothing; after a crash of the one before, its server.log says more.",
        (_text("data", "the directory"), _integer("pid", "of the server"), _RUN, _number("after_s", "seconds it took")),
    ),
    Event(
        "settings_differ",
        Severity.WARNING,
        "client",
        "the shared directory's server was started by somebody else, with settings other than this process asked for",
        "Give all openers the same settings, or put them into broker.toml in the directory.",
        (_DETAIL,),
    ),
    # -- who signs in
    Event(
        "access_changed",
        Severity.INFO,
        "access",
        "the access file or its key set has changed, and the new rules are in force for everybody",
        "Nothing; connections whose rights have ended are told and closed.",
        (
            _text("path", "of the access file"),
            _integer("roles", "how many it defines"),
            _integer("keys", "that signed tokens are checked with"),
            _integer("tokens", "static ones that it lists"),
        ),
    ),
    Event(
        "access_refused",
        Severity.ERROR,
        "access",
        "the changed access file or its key set cannot be used; the old rules stay in force",
        "Correct it; it is read again when it changes.",
        (_text("path", "of the access file"), _CODE, _DETAIL, _HINT),
    ),
    # -- the node
    Event(
        "commit_failed",
        Severity.ERROR,
        "node",
        "a group could not be committed; its publishers are told, and the journal goes on in a new segment",
        "Check the disk and its free space; at three failures in a minute the server ends.",
        (
            _CODE,
            _DETAIL,
            Field("handed_over", FieldKind.BOOLEAN, "whether the disk had it already, so that its outcome is unknown"),
        ),
    ),
    Event(
        "dead_letter_refused",
        Severity.ERROR,
        "node",
        "a job that a consumer has given up could not be copied into its dead-letter channel; it stays where it was",
        "Look at the message by its channel and sequence, and let the dead-letter channel take as much as its source.",
        (
            _text("consumer", "the consumer's name"),
            _text("channel", "where the message is"),
            _integer("sequence", "and its sequence there"),
            _CODE,
            _DETAIL,
        ),
    ),
    Event(
        "memory_short",
        Severity.WARNING,
        "node",
        "queues hold 80 % of limits.memory_bytes_max; publishers are not read until they hold less than 75 %",
        "See who lags (`broker top`); raise limits.memory_bytes_max if the machine has more.",
        (
            Field("used_bytes", FieldKind.INTEGER, "what they hold"),
            Field("limit_bytes", FieldKind.INTEGER, "the limit"),
        ),
    ),
    Event(
        "memory_enough",
        Severity.INFO,
        "node",
        "queues hold less than 75 % of limits.memory_bytes_max again; publishers are read",
        "Nothing to do.",
        (
            Field("used_bytes", FieldKind.INTEGER, "what they hold"),
            Field("limit_bytes", FieldKind.INTEGER, "the limit"),
        ),
    ),
    Event(
        "storage_recovered",
        Severity.INFO,
        "node",
        "commits succeed again",
        "Nothing.",
        (_integer("group", "number of the first group that was committed"),),
    ),
    Event(
        "clock_jump",
        Severity.WARNING,
        "node",
        "the wall clock is more than two seconds from broker time; it is followed only if it stays there",
        "Check the machine's time service.",
        (
            _number("behind_s", "wall clock less broker time, seconds"),
            _integer("lasts_s", "seconds it must last to be followed"),
        ),
    ),
    Event(
        "tracing_failed",
        Severity.ERROR,
        "server",
        "spans of a group could not be made; messages do not depend on it",
        "See that the packages of OpenTelemetry fit each other; report it with its traceback if they do.",
        (_ERROR,),
    ),
    Event(
        "time_not_found",
        Severity.ERROR,
        "node",
        "searching the log for a time failed by a mistake of the broker; that subscription is refused",
        "Report it with its traceback.",
        (_ERROR,),
    ),
    Event(
        "load_failed",
        Severity.ERROR,
        "node",
        "looking channels up in the log failed by a mistake of the broker; whoever waits for them is refused",
        "Report it with its traceback.",
        (_ERROR,),
    ),
    Event(
        "delayed_unreadable",
        Severity.ERROR,
        "node",
        "messages that wait for their time cannot be read; it is tried again each second, and none is lost",
        "Go by the error's advice: see `broker errors`, and `broker verify` if the storage is damaged.",
        (_CODE, _DETAIL),
    ),
    Event(
        "delayed_refused",
        Severity.WARNING,
        "node",
        "messages whose time has come are not taken by their channel; they are tried again after a minute, or after a "
        "second when the reason is of the moment",
        "Give the channel a profile that takes them, or cancel them: `broker delayed ls`, `broker delayed cancel`.",
        (
            _text("channel", "where they belong"),
            _integer("messages", "how many"),
            _CODE,
            _DETAIL,
        ),
    ),
    Event(
        "history_failed",
        Severity.ERROR,
        "node",
        "reading history failed by a mistake of the broker; those who asked are refused",
        "Report it with its traceback.",
        (_ERROR,),
    ),
    Event(
        "catchup_failed",
        Severity.ERROR,
        "node",
        "reading history failed by a mistake of the broker; that connection is closed",
        "Report it with its traceback.",
        (_ERROR,),
    ),
    Event(
        "retention_failed",
        Severity.WARNING,
        "node",
        "retention could not plan or carry out its next step; nothing is removed until it can",
        "Look at the error's advice; it is tried again within a minute.",
        (_CODE, _DETAIL),
    ),
    Event(
        "retention_held",
        Severity.INFO,
        "node",
        "consumers have not done what retention would take, and it waits for them",
        "Look at the consumer that is named if this lasts: `broker consumer info`.",
        (
            _integer("channels", "how many channels are held"),
            _integer("held_bytes", "what of them is kept past retention, about"),
            _text("consumer", "the one that holds most of them"),
        ),
    ),
    Event(
        "hold_full",
        Severity.WARNING,
        "node",
        "consumers hold more of a channel than hold_bytes_max of its profile; its publishers are answered LIMIT",
        "Have the consumer's jobs done, remove it, or raise hold_bytes_max.",
        (
            _text("channel", "which"),
            _text("consumer", "the one that is furthest behind"),
            _integer("held_bytes", "what is kept past retention, about"),
            _integer("limit_bytes", "the limit"),
        ),
    ),
    Event(
        "retention_released",
        Severity.INFO,
        "node",
        "no consumer holds anything back from retention any more",
        "Nothing is to be done.",
        (),
    ),
    Event(
        "session_failed",
        Severity.ERROR,
        "server",
        "a connection was ended by a mistake of the broker; the others go on",
        "Report it with its traceback.",
        (_text("peer", "where the connection came from"), _ERROR),
    ),
    Event(
        "connection_exhausted",
        Severity.ERROR,
        "server",
        "a connection was ended because the machine has no memory left for it",
        "Give the process more memory, or lower limits.connections_max.",
        (_CODE, _DETAIL),
    ),
    Event(
        "accept_paused",
        Severity.WARNING,
        "server",
        "no connection can be accepted for now: the limit of open files is reached",
        "Raise the limit of open files (ulimit -n) or lower limits.connections_max.",
        (_number("pause_s", "seconds until the next attempt"), _ERROR),
    ),
    Event(
        "second_skipped",
        Severity.ERROR,
        "node",
        "there was no memory to look after connections and the clock; it is tried again in a second",
        "Give the process more memory, or lower limits.connections_max.",
        (),
    ),
    # -- the journal
    Event(
        "sealer_stopped",
        Severity.ERROR,
        "log",
        "the thread that seals segments ended by a mistake of the broker; publishing fails from the next segment on",
        "Restart the server, and report it with its traceback.",
        (_ERROR,),
    ),
    Event(
        "task_failed",
        Severity.ERROR,
        "node",
        "long work on the data, such as a backup, ended by a mistake of the broker; serving goes on",
        "Ask for it again, and report it with its traceback.",
        (_text("op", "what the task did"), _ERROR),
    ),
    Event(
        "segment_damaged",
        Severity.ERROR,
        "log",
        "a full segment fails its checksums; it stays as it is and unsealed",
        "Keep a copy of the data directory, check the disk, and restore from a backup.",
        (_SEGMENT, _DETAIL),
    ),
    Event(
        "segment_seal_delayed",
        Severity.WARNING,
        "log",
        "sealing a full segment failed; it is tried again",
        "Free space or check the disk if it goes on.",
        (_SEGMENT, _number("retry_s", "seconds until the next attempt"), _ERROR),
    ),
    Event(
        "segment_removal_delayed",
        Severity.WARNING,
        "log",
        "a segment that is not needed any more could not be removed; the next start does it",
        "Check the permissions of the data directory if it comes again.",
        (_SEGMENT, _ERROR),
    ),
    Event(
        "commits_delayed",
        Severity.WARNING,
        "log",
        "more comes in than the archive takes, so commits wait for it; at the limit they are refused with STORAGE_FULL",
        "Give the disk less else to do, or raise storage.backlog_bytes_max for a peak that will pass.",
        (_integer("waiting_bytes", "bytes that wait for the archive"), _integer("limit_bytes", "the bound on them")),
    ),
    Event(
        "archiving_delayed",
        Severity.WARNING,
        "log",
        "segments could not be moved to the archive; it is tried again, and they stay where they are until then",
        "Free space or check the disk if it goes on.",
        (
            _text("data", "path of the data directory"),
            _number("retry_s", "seconds until the next attempt"),
            _ERROR,
        ),
    ),
    Event(
        "archiving_blocked",
        Severity.ERROR,
        "log",
        "what the archive takes in, or the archive itself, is damaged: the journal grows from now on, until commits "
        "are refused; what is not damaged is served",
        "Stop the broker, run `broker verify DATA --quarantine`, and start it again; instead of a damaged archive "
        "restore a backup.",
        (
            _text("data", "path of the data directory"),
            _number("retry_s", "seconds until the next attempt"),
            _ERROR,
        ),
    ),
    Event(
        "archiving_stopped",
        Severity.ERROR,
        "log",
        "the thread that moves segments to the archive ended by a mistake of the broker; the journal grows from now on",
        "Restart the server, and report it with its traceback.",
        (_text("data", "path of the data directory"), _ERROR),
    ),
    # -- clients
    Event(
        "reconnecting",
        Severity.INFO,
        "client",
        "the client lost its connection, or could not get one, and will try again",
        "Nothing; look at the broker if it goes on.",
        (_number("after_s", "seconds until the attempt"), _CODE, _DETAIL),
    ),
    Event(
        "renewal_failed",
        Severity.WARNING,
        "client",
        "the client got no fresh token, or the server did not take it; it tries again until the old one ends",
        "See that what gives the client its tokens works.",
        (_CODE, _DETAIL),
    ),
    Event(
        "client_failed",
        Severity.ERROR,
        "client",
        "the client ended by a mistake of its own",
        "Report it with its traceback.",
        (_ERROR,),
    ),
    Event(
        "closed_unanswered",
        Severity.WARNING,
        "client",
        "the bus was closed before the broker had answered all publishes; their outcome is unknown",
        "Await drain() before closing, or give close() more time.",
        (_integer("messages", "publishes without an answer"),),
    ),
    Event(
        "batch_dropped",
        Severity.WARNING,
        "client",
        "a pipeline's transaction was not committed: its jobs come again, and nothing was published for them",
        "If leases were over, transforms take longer than they: make batches smaller, or the queue's lease longer.",
        (
            _text("queue", "name of the consumer or work queue"),
            _integer("jobs", "jobs of the transaction"),
            _CODE,
            _DETAIL,
        ),
    ),
    Event(
        "job_failed",
        Severity.WARNING,
        "client",
        "a worker's function raised an exception; the job comes again after its queue's back-off",
        "Look at the traceback. The queue's attempts_max and dead_letter say when such a job is given up.",
        (
            _text("queue", "name of the work queue"),
            _text("channel", "the job's channel"),
            _integer("sequence", "and sequence"),
            _integer("attempt", "how often it was tried, this time included"),
            _ERROR,
        ),
    ),
    # -- the process, whatever runs in it
    Event(
        "loop_error",
        Severity.ERROR,
        "process",
        "an exception reached the event loop's handler",
        "Report it with its traceback, unless `error` names the machine's limits.",
        (_text("message", "what the loop says of it"), _ERROR),
    ),
    Event(
        "crashed",
        Severity.CRITICAL,
        "process",
        "an exception that nobody caught ends the process",
        "Report it with its traceback, and start the server again.",
        (_ERROR,),
    ),
    Event(
        "thread_error",
        Severity.ERROR,
        "process",
        "an exception ended a thread",
        "Report it with its traceback.",
        (_text("thread", "name of the thread"), _ERROR),
    ),
    Event(
        "unraisable_error",
        Severity.ERROR,
        "process",
        "an exception could not be raised, for instance in a finalizer",
        "Report it with its traceback.",
        (_text("message", "what the interpreter says of it"), _ERROR),
    ),
    Event(
        "warning",
        Severity.WARNING,
        "process",
        "the interpreter or a library warned",
        "Report it, or update the library that it names.",
        (_text("message", "the warning"),),
    ),
    Event(
        "library_log",
        Severity.INFO,
        "process",
        "a library logged something; the record keeps the library's level",
        "Read the message.",
        (_text("logger", "name of the library's logger"), _text("message", "what it said")),
    ),
    Event(
        "events_suppressed",
        Severity.WARNING,
        "process",
        "an event came more often than is logged in a second",
        "Look at the records of that event; nothing is lost but their repetition.",
        (_text("name", "the event"), _integer("count", "records that were left out")),
    ),
)

EVENT_BY_NAME: Mapping[str, Event] = MappingProxyType({event.name: event for event in EVENTS})
