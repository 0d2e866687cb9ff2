"""What threads ask a broker and have it do: consumers and queues, figures, history, and long work."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from broker.blocking.bus import BlockingBus
from broker.blocking.history import History
from broker.blocking.waiting import Deadline
from broker.bus import ChannelInfo
from broker.model.errors import error
from broker.model.history import Trim
from broker.model.levels import Level
from broker.model.names import check_channel
from broker.remote.bus import TASK_POLL_S_MAX, TASK_POLL_S_MIN
from broker.remote.consumers import ConsumersPages, consumer_of, named, queue_of, start_of
from broker.remote.pages import NamesPages, make_pages
from broker.wire import consuming, control, requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from broker.bus import HistorySince, HistoryUntil, ListedChannel, Start
    from broker.model.consumers import ConsumerInfo, WaitingJob


class Questions(BlockingBus):
    """The part of a `Client` that asks."""

    # .. consumers and work queues ..

    def create_consumer(
        self,
        name: str,
        *filters: str,
        start: Start = "start",
        lease_s: float | None = 30.0,
        attempts_max: int = 0,
        backoff_s: tuple[float, float] = (1.0, 60.0),
        dead_letter: str | None = None,
        paused: bool = False,
        update: bool = False,
        timeout_s: float | None = None,
    ) -> ConsumerInfo:
        """Make a durable consumer, a reader with a name whose place the broker keeps, as `Bus.create_consumer` does.

        Raises:
            BrokerError: INVALID_CONSUMER, CONSUMER_EXISTS, NOT_STORED, …; COMMIT_UNKNOWN when no answer came in time.
        """
        settings = consumer_of(
            name,
            filters,
            lease_s=lease_s,
            attempts_max=attempts_max,
            backoff_s=backoff_s,
            dead_letter=dead_letter,
            paused=paused,
        )
        arguments = consuming.pack_consumer_set(settings, start_of(filters, start), update=update)
        return consuming.decode_info(self.ask("consumer_set", arguments, timeout_s, changes=True))

    def create_queue(
        self,
        name: str,
        *filters: str,
        start: Start = "start",
        lease_s: float = 30.0,
        attempts_max: int = 0,
        backoff_s: tuple[float, float] = (1.0, 60.0),
        dead_letter: str | None = None,
        lanes: bool = False,
        by_key: bool = False,
        paused: bool = False,
        update: bool = False,
        timeout_s: float | None = None,
    ) -> ConsumerInfo:
        """Make a work queue, a consumer that any number of members share, as `Bus.create_queue` does.

        Raises:
            BrokerError: As for `create_consumer`.
        """
        settings = queue_of(
            name,
            filters,
            lease_s=lease_s,
            attempts_max=attempts_max,
            backoff_s=backoff_s,
            dead_letter=dead_letter,
            lanes=lanes,
            by_key=by_key,
            paused=paused,
        )
        arguments = consuming.pack_consumer_set(settings, start_of(filters, start), update=update)
        return consuming.decode_info(self.ask("consumer_set", arguments, timeout_s, changes=True))

    def consumer_info(self, name: str, *, timeout_s: float | None = None) -> ConsumerInfo:
        """Answer what there is to tell of a consumer or a work queue, as `Bus.consumer_info` does; TIMEOUT besides."""
        return consuming.decode_info(self.ask("consumer", named(name), timeout_s))

    def consumers(
        self, prefix: str = "", *, after: str = "", limit: int | None = None, timeout_s: float | None = None
    ) -> Iterator[ConsumerInfo]:
        """Iterate over consumers and work queues, ascending by name; pages by itself. For one thread."""
        pages = ConsumersPages(prefix, after, limit)
        while (arguments := pages.next()) is not None:
            yield from pages.take(self.ask("consumers", arguments, timeout_s))

    def remove_consumer(self, name: str, *, timeout_s: float | None = None) -> None:
        """Remove a consumer or a work queue, and what it remembers, for good; messages stay."""
        self.ask("consumer_remove", named(name), timeout_s, changes=True)

    def pause_consumer(self, name: str, *, timeout_s: float | None = None) -> ConsumerInfo:
        """Give out nothing until `resume_consumer`, also over restarts. What is under way can be settled."""
        return self._pause_consumer(name, True, timeout_s)

    def resume_consumer(self, name: str, *, timeout_s: float | None = None) -> ConsumerInfo:
        """Give out jobs again."""
        return self._pause_consumer(name, False, timeout_s)

    def _pause_consumer(self, name: str, paused: bool, timeout_s: float | None) -> ConsumerInfo:
        arguments = {**named(name), "paused": paused}
        return consuming.decode_info(self.ask("consumer_pause", arguments, timeout_s, changes=True))

    def reset_consumer(self, name: str, start: Start, *, timeout_s: float | None = None) -> ConsumerInfo:
        """Go on somewhere else: what is behind it is done, what is before it comes (again), and leases are void."""
        filters = self.consumer_info(name, timeout_s=timeout_s).settings.filters
        arguments = consuming.pack_reset(name, start_of(filters, start))
        return consuming.decode_info(self.ask("consumer_reset", arguments, timeout_s, changes=True))

    def peek(self, name: str, limit: int = 100, *, timeout_s: float | None = None) -> list[WaitingJob]:
        """Answer jobs that are not done, the next ones first, without taking them; at most `limit`, 1 to 1,000."""
        arguments = {**named(name), "limit": limit}
        return list(consuming.decode_waiting(self.ask("consumer_peek", arguments, timeout_s)))

    def purge(self, name: str, *, timeout_s: float | None = None) -> int:
        """Have everything done that there is up to now; answer how many jobs waited."""
        return control.take_int(self.ask("consumer_purge", named(name), timeout_s, changes=True), "count")

    def redrive(self, name: str, limit: int | None = None, *, timeout_s: float | None = None) -> int:
        """Publish a queue's dead letters to their channels again, at most `limit`; answer how many."""
        arguments = {**named(name), "limit": limit}
        return control.take_int(self.ask("consumer_redrive", arguments, timeout_s, changes=True), "count")

    # .. asking ..

    def stats(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Answer the broker's own figures."""
        figures = self.ask("stats", {}, timeout_s).get("stats")
        return figures if isinstance(figures, dict) else {}

    def channel(self, name: str, *, timeout_s: float | None = None) -> ChannelInfo:
        """Answer what a channel holds.

        Raises:
            BrokerError: INVALID_CHANNEL, NO_PROFILE, DENIED; TIMEOUT.
        """
        check_channel(name)
        fields = self.ask("channel", {"name": name}, timeout_s)
        return ChannelInfo(fields["epoch"], fields["first"], fields["head"], Level(fields["level"]))

    def history(
        self,
        channel: str,
        *,
        since: HistorySince = None,
        until: HistoryUntil = None,
        limit: int | None = None,
        reverse: bool = False,
        timeout_s: float | None = None,
    ) -> History:
        """Read what is stored of a channel, or of what a pattern selects, as `broker.bus.Bus.history` does.

        Args:
            channel, since, until, limit, reverse: As there.
            timeout_s: How long to wait for each page.

        Returns:
            The read, to be iterated by one thread; nothing is asked for before.

        Raises:
            InvalidChannel, InvalidPattern: It is no name.
            RequestError: INVALID_POSITION; the bounds do not fit the name.
        """
        return History(self, make_pages(channel, since, until, limit, reverse), timeout_s)

    def channels(
        self,
        prefix: str = "",
        *,
        after: str = "",
        limit: int | None = None,
        details: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[ListedChannel]:
        """Iterate over the names of stored channels, ascending by bytes; pages by itself.

        Args:
            prefix: What the names begin with; any text, whole tokens or not.
            after: Only names greater than this.
            limit: At most so many, from 1.
            details: Say of each what it holds.
            timeout_s: How long to wait for each page.

        Returns:
            The names, for one thread.

        Raises:
            BrokerError: From the iteration: DENIED, a storage error; TIMEOUT.
        """
        pages = NamesPages(prefix, after, limit, details=details)
        while (arguments := pages.next()) is not None:
            yield from pages.take(self.ask("channels", arguments, timeout_s))

    def trim(self, name: str, first: int, *, timeout_s: float | None = None) -> int:
        """Take the messages before a sequence out of a channel, for good; return the oldest that it has now.

        Args:
            name: The channel's name.
            first: The oldest sequence to keep, from 1 to one past the newest.

        Raises:
            BrokerError: DENIED, INVALID_POSITION, or a storage error; COMMIT_UNKNOWN when no answer came in time.
        """
        check_channel(name)
        fields = self.ask("trim", requests.pack_query(Trim(name, first)), timeout_s, changes=True)
        return control.take_int(fields, "first")

    def remove(self, name: str, *, timeout_s: float | None = None) -> None:
        """Remove a channel and all that it holds, for good; it is committed on return.

        Raises:
            BrokerError: BUSY while anybody publishes to it or reads it by its name; DENIED, INVALID_CHANNEL, or a
                storage error; COMMIT_UNKNOWN when no answer came in time.
        """
        check_channel(name)
        self.ask("remove", {"name": name}, timeout_s, changes=True)

    def backup(
        self, path: str, on_progress: Callable[[int, int], object] | None = None, *, timeout_s: float | None = None
    ) -> str:
        """Copy everything that is stored at this moment, while the broker serves on; return what came of it.

        Args:
            path: An absolute path on the broker's machine, of a folder that is missing or empty.
            on_progress: Called with (bytes done, bytes in all) now and then, by this thread.
            timeout_s: How long all of it may take; None: as long as it takes.

        Raises:
            BrokerError: BUSY, other long work is under way; DENIED; STORAGE_FAILED, with what went wrong; TIMEOUT, and
                then it goes on.
        """
        return self._finish("backup", {"path": path}, on_progress, timeout_s)

    def compact(
        self, on_progress: Callable[[int, int], object] | None = None, *, timeout_s: float | None = None
    ) -> str:
        """Give the disk back what was trimmed, expired or removed, so that no file holds it any more.

        Args:
            on_progress, timeout_s: As for `backup`.

        Raises:
            BrokerError: As for `backup`.
        """
        return self._finish("compact", {}, on_progress, timeout_s)

    def _finish(
        self,
        operation: str,
        arguments: Mapping[str, object],
        on_progress: Callable[[int, int], object] | None,
        timeout_s: float | None,
    ) -> str:
        """Begin long work and ask how far it is until it has ended."""
        deadline = Deadline(timeout_s)
        begun = self.ask(operation, arguments, changes=True)
        pause_s = TASK_POLL_S_MIN
        while True:
            task = self.ask("task", {"id": begun["id"]})
            if on_progress is not None:
                on_progress(task["done"], task["total"])
            if task["state"] == "done":
                return str(task["detail"])
            if task["state"] != "running":
                raise error("STORAGE_FAILED", f"{operation}: {task['detail']}")
            if deadline.left_s() == 0:
                raise deadline.passed(operation, "not done", "It goes on at the broker, which takes one at a time.")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, TASK_POLL_S_MAX)
