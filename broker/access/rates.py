"""How much a user, or an address, may do in a second: connect, fail to sign in, subscribe, publish.

Each of them has a bucket that holds what comes in a second. Buckets are made when they are first used and the ones that
were not used for longest make room, so strangers cannot fill the memory; whoever comes back after that has a full one.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING

from broker.model.errors import error
from broker_native.rates import Rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.access.identity import Identity
    from broker.model.errors import BrokerError
    from broker.model.limits import Limits

__all__ = ["Rates", "address_of", "too_fast"]

BUCKETS_MAX = 16_384
"""Of each kind; about 150 bytes each."""
IPV6_BITS = 64
"""An IPv6 network of this size is one subscriber's: its addresses count as one."""


def address_of(peer: str) -> str:
    """Return where a peer is, without its port; of an IPv6 address the network."""
    host = peer.rpartition(":")[0] if ":" in peer else peer
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> IPV6_BITS << IPV6_BITS))


def too_fast(what: str, identity: Identity, wait_ms: int) -> BrokerError:
    """Return the error for somebody who does more than is let in."""
    who = identity.user or address_of(identity.peer) or "this connection"
    return error("RATE_LIMITED", f"{what}: {who} does more than it may in a second", retry_after_ms=wait_ms)


class Rates:
    """The buckets of one broker. All of it belongs to the loop's thread.

    Args:
        limits: What buckets hold.
        now_us: Time for intervals, microseconds.
    """

    def __init__(self, limits: Limits, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self.take_limits(limits)

    def take_limits(self, limits: Limits) -> None:
        """Go by new limits: everybody has a full bucket. Who keeps one of `publishing` asks for it again."""
        self._connecting = _Buckets(limits.connects_per_s)
        self._failing = _Buckets(limits.failed_sign_ins_per_s)
        self._subscribing = _Buckets(limits.subscribes_per_s)
        self._publishing = _Buckets(limits.publishes_per_s, limits.publish_bytes_per_s)

    @property
    def counts_connections(self) -> bool:
        """Whether there is a bound on how often an address connects."""
        return self._connecting.bounded

    def connecting_ms(self, address: str) -> int:
        """Count a connection of an address; returns 0, or milliseconds after which it may come back."""
        return self._connecting.take(address, self._now_us())

    def failing_ms(self, address: str) -> int:
        """Return 0 if an address may try to sign in, or milliseconds after which it may."""
        bucket = self._failing.of(address)
        return 0 if bucket is None else bucket.wait_ms(self._now_us())

    def failed(self, address: str) -> None:
        """Count a token that was no good."""
        self._failing.take(address, self._now_us())

    def subscribing_ms(self, key: str) -> int:
        """Count a subscription of a user, or an address; returns 0, or milliseconds after which it may come again."""
        return self._subscribing.take(key, self._now_us())

    def publishing(self, key: str) -> Rate | None:
        """Return what counts the publishes of a user, or an address; None where there is no bound."""
        return self._publishing.of(key)


class _Buckets:
    """Buckets of one kind, by whose they are."""

    def __init__(self, per_s: int, bytes_per_s: int = 0) -> None:
        self._per_s = per_s
        self._bytes_per_s = bytes_per_s
        self._buckets: OrderedDict[str, Rate] = OrderedDict()

    @property
    def bounded(self) -> bool:
        return bool(self._per_s or self._bytes_per_s)

    def of(self, key: str) -> Rate | None:
        if not self.bounded:
            return None
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Rate(self._per_s, self._bytes_per_s)
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket

    def take(self, key: str, now_us: int) -> int:
        bucket = self.of(key)
        return 0 if bucket is None else bucket.take_some(1, 0, now_us)
