"""An ordered-log message bus: durable channels that readers resume exactly.

    import broker

    async with broker.connect("broker://127.0.0.1:4770") as bus:
        receipt = await bus.publish("chat.acme.42", b"hello")
        async with bus.subscribe("chat.acme.*", start="start") as subscription:
            async for message in subscription:
                print(message.channel, message.payload)

Programs without a loop have the same from `broker.blocking`, in threads and under gevent.

The names below are the public API, and those of `broker.blocking`; everything else is inside. They are imported when
they are first used, so that `import broker` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from broker._version import __version__

if TYPE_CHECKING:
    from broker.bus import (
        Bus,
        ChannelInfo,
        Consumer,
        DelayedMessage,
        History,
        Last,
        ListedChannel,
        Output,
        Pipeline,
        Reject,
        Retry,
        Since,
        Subscription,
        SubscriptionEvent,
        Transaction,
        Until,
    )
    from broker.client.client import Client, connect
    from broker.embedded import Broker
    from broker.model.consumers import ConsumerInfo, ConsumerSettings, WaitingJob
    from broker.model.errors import (
        BrokerError,
        CommitUnknown,
        ConfigError,
        Conflict,
        ConnectionLost,
        Denied,
        FrameTooLarge,
        InvalidChannel,
        InvalidPattern,
        LimitExceeded,
        MalformedFrame,
        ProtocolError,
        Remedy,
        RequestError,
        StorageCorrupt,
        StorageError,
        StorageFull,
        Unavailable,
    )
    from broker.model.levels import Level
    from broker.model.positions import BusPosition, Position
    from broker.remote.reconnect import BackoffPolicy
    from broker_native.messages import Batch, Message
    from broker_native.outcomes import Publication, Receipt, Scheduled
    from broker_native.work import Job, JobBatch

__all__ = [
    "BackoffPolicy",
    "Batch",
    "Broker",
    "BrokerError",
    "Bus",
    "BusPosition",
    "ChannelInfo",
    "Client",
    "CommitUnknown",
    "ConfigError",
    "Conflict",
    "ConnectionLost",
    "Consumer",
    "ConsumerInfo",
    "ConsumerSettings",
    "DelayedMessage",
    "Denied",
    "FrameTooLarge",
    "History",
    "InvalidChannel",
    "InvalidPattern",
    "Job",
    "JobBatch",
    "Last",
    "Level",
    "LimitExceeded",
    "ListedChannel",
    "MalformedFrame",
    "Message",
    "Output",
    "Pipeline",
    "Position",
    "ProtocolError",
    "Publication",
    "Receipt",
    "Reject",
    "Remedy",
    "RequestError",
    "Retry",
    "Scheduled",
    "Since",
    "StorageCorrupt",
    "StorageError",
    "StorageFull",
    "Subscription",
    "SubscriptionEvent",
    "Transaction",
    "Unavailable",
    "Until",
    "WaitingJob",
    "__version__",
    "connect",
]

_HOMES = {
    "broker.bus": (
        "Bus",
        "ChannelInfo",
        "Consumer",
        "History",
        "Last",
        "DelayedMessage",
        "ListedChannel",
        "Output",
        "Pipeline",
        "Reject",
        "Retry",
        "Since",
        "Subscription",
        "SubscriptionEvent",
        "Transaction",
        "Until",
    ),
    "broker.client.client": ("Client", "connect"),
    "broker.remote.reconnect": ("BackoffPolicy",),
    "broker.embedded": ("Broker",),
    "broker.model.consumers": ("ConsumerInfo", "ConsumerSettings", "WaitingJob"),
    "broker.model.levels": ("Level",),
    "broker.model.positions": ("BusPosition", "Position"),
    "broker_native.messages": ("Batch", "Message"),
    "broker_native.outcomes": ("Publication", "Receipt", "Scheduled"),
    "broker_native.work": ("Job", "JobBatch"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the public name's module on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Every public name that has no home of its own in the table is an error class.
    value = getattr(import_module(_HOME_OF.get(name, "broker.model.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
