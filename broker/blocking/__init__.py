"""A bus for programs without a loop: threads, and gevent after `monkey.patch_all()`.

    from broker.blocking import connect

    with connect("broker://127.0.0.1:4770") as bus:
        receipt = bus.publish("chat.acme.42", b"hello")
        with bus.subscribe("chat.acme.*", start="start") as subscription:
            for message in subscription:
                print(message.channel, message.payload)

The operations of `broker.bus.Bus` under the same names, with the same arguments and errors, without `await`; each that
waits takes `timeout_s`. A bus may be used by any number of threads at once. It has a thread of its own that reads its
socket, and from the first `post` that nobody waits for, or the first moment in which the server takes no more, one that
writes. Both are greenlets under gevent. Nothing here knows asyncio, or gevent, or calls anything that waits and that
gevent does not replace.

`client` is the bus, `connection` its socket, `subscription`, `consumer` and `history` what is read and `reading` how,
`transaction` what is published together, `workers` who does the jobs of queues, `pipeline` what transforms them,
`waiting` how a thread waits. What outlives a connection, and what frames mean, is shared with the asyncio client:
`broker.remote`.
"""

from __future__ import annotations

from broker.blocking.client import Client, connect
from broker.blocking.consumer import Consumer, Settled
from broker.blocking.history import History
from broker.blocking.pipeline import Pipeline
from broker.blocking.subscription import Subscription
from broker.blocking.transaction import Transaction
from broker.blocking.waiting import Pending, Window
from broker.blocking.workers import Workers

__all__ = [
    "Client",
    "Consumer",
    "History",
    "Pending",
    "Pipeline",
    "Settled",
    "Subscription",
    "Transaction",
    "Window",
    "Workers",
    "connect",
]
