"""The server's life: start, ready, reload, drain, end.

This is the only place that touches the process: its signals, its interpreter's switch interval, the collector, the
heap's bounds, the loop's kind. A broker that is embedded touches none of them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker._version import __version__
from broker.access.authority import Authority
from broker.config import Config, check_listeners, takes_uvloop
from broker.edge.certificates import Certificates
from broker.edge.heap import settle_heap
from broker.edge.log_output import set_log_level, set_up_log, watch_loop
from broker.edge.native import NativeListener
from broker.edge.shared import bound_log, is_missing, settings_in_force, until_idle_s
from broker.events import emit, flush
from broker.log import ArchiveBy
from broker.log.directory import SHARED_OWNER, describe_owner
from broker.model.errors import BrokerError, error
from broker.node.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.edge.accepting import Listener
    from broker.edge.spans import Spans
    from broker.edge.starter import Starter
    from broker.edge.web.context import OpenBus
    from broker.edge.web.server import WebServer

__all__ = ["run"]

SWITCH_INTERVAL_S = 0.0005
"""How long the loop may keep the interpreter from the commit thread."""

FLUSH_S = 10.0
"""How often what is only counted, refused connections for instance, is logged."""

LOOK_AFTER_S = 1.0
"""How often a server that nobody looks after sees whether it is still wanted and can be found."""


def run(
    config: Config,
    ready_file: Path | None = None,
    starter: Starter | None = None,
    open_bus: OpenBus | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: All settings; listeners have been checked.
        ready_file: Where to write, when connections are taken, a JSON object with `tcp`, `unix`, `web`, `pid`, `run`.
        starter: Who waits for this server, and has nobody else look after it.
        open_bus: Gives web requests a bus; needed with `server.web`.

    Raises:
        BrokerError: ADDRESS, STORAGE_*: it cannot serve, or cannot go on.
    """
    set_up_log(config.server.log_level, config.server.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settle_heap()
    try:
        with asyncio.Runner(loop_factory=loop_factory(config.server.loop)) as runner:
            runner.run(Server(config, ready_file, starter, open_bus).serve())
    except BrokerError as failure:
        emit("server_failed", code=failure.name, detail=failure.detail, hint=failure.hint)
        raise


def loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop of this kind (auto, uvloop, asyncio).

    Raises:
        BrokerError: INVALID_CONFIG; uvloop is asked for and not installed.
    """
    if not takes_uvloop(kind):
        return None
    import uvloop

    return uvloop.new_event_loop


class Server:
    """One serving process.

    Args:
        config: All settings.
        ready_file, starter, open_bus: As in `run`.
    """

    def __init__(
        self,
        config: Config,
        ready_file: Path | None,
        starter: Starter | None = None,
        open_bus: OpenBus | None = None,
    ) -> None:
        self._config = config
        self._ready_file = ready_file
        self._starter = starter
        self._open_bus = open_bus
        self._web: WebServer | None = None
        self._certificates: Certificates | None = None
        self._spans: Spans | None = None
        self._stop: asyncio.Future[None]
        self._restoring: asyncio.Task[None]

    async def serve(self) -> None:
        """Start, serve, drain, end."""
        begun = time.monotonic()
        config = self._config
        loop = asyncio.get_running_loop()
        watch_loop(loop)
        self._stop = loop.create_future()
        # Before anything is recovered: what they lack has nothing to do with that.
        if config.tls.certificate:
            self._certificates = Certificates(config.tls)
        if config.tracing.exporter:
            # Imported when somebody wants it: it needs packages that the broker itself does not.
            from broker.edge.spans import Spans, find_exporter

            self._spans = Spans(config.tracing, find_exporter(config.tracing.exporter))
        # Read before the data is opened: there is no server without rules that was to have some.
        authority = Authority(config.access.file, loop.call_soon_threadsafe) if config.access.file else None
        try:
            await self._serve(authority, begun)
        finally:
            if authority is not None:
                authority.close()

    async def _serve(self, authority: Authority | None, begun: float) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        self._node = await Node.open(
            config.server.data,
            profiles=config.profiles,
            limits=config.limits,
            segment_bytes=config.storage.segment_bytes,
            reserve_bytes=config.storage.reserve_bytes,
            backlog_bytes_max=config.storage.backlog_bytes_max,
            archive_by=ArchiveBy.PROCESS,
            authority=authority,
        )
        self._node.fatal = self._fail
        if self._spans is not None:
            self._spans.begin(self._node.tails.name_of)
            self._node.on_delivered = self._spans.delivered
        listener = NativeListener(self._node, self._certificates)
        if self._starter is not None:
            describe_owner(Path(config.server.data), SHARED_OWNER)
        try:
            await self._listen(listener)
            if self._certificates is not None:
                self._certificates.watch()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._end)
            loop.add_signal_handler(signal.SIGHUP, self._reload)
            self._announce(listener, time.monotonic() - begun)
            gc.collect()
            gc.freeze()
            self._flush_log()
            if self._starter is not None:
                self._look_after(listener)
            self._end_when_idle(listener)
            await self._stop
        finally:
            listener.stop_accepting()
            if self._certificates is not None:
                self._certificates.close()
            if self._web is not None:
                await self._web.close(config.server.drain_s)
            await self._node.drain(config.server.drain_s)
            await self._node.close()
            if self._spans is not None:
                await loop.run_in_executor(None, self._spans.close)
            flush()
            emit("stopped", run=self._node.run)

    def _flush_log(self) -> None:
        flush()
        asyncio.get_running_loop().call_later(FLUSH_S, self._flush_log)

    async def _listen(self, listener: NativeListener) -> None:
        listeners = check_listeners(self._config.server, self._config.guard)
        if listeners.tcp is not None:
            await listener.listen_tcp(listeners.tcp.host, listeners.tcp.port)
        if listeners.unix is not None:
            await listener.listen_unix(listeners.unix)
        if listeners.web is not None:
            # Imported when there is to be one: it needs packages that the broker itself does not.
            from broker.edge.web.server import WebServer

            assert self._open_bus is not None
            self._web = WebServer.open(self._node, self._config, listener, self._open_bus)
            self._web.listen(listeners.web.host, listeners.web.port)

    @property
    def _web_address(self) -> str | None:
        return None if self._web is None else self._web.web.address

    def _announce(self, listener: NativeListener, seconds: float) -> None:
        emit(
            "ready",
            version=__version__,
            pid=os.getpid(),
            run=self._node.run,
            tcp=listener.tcp,
            unix=listener.unix,
            web=self._web_address,
            tls=self._certificates is not None,
            data=self._config.server.data,
            after_s=round(seconds, 3),
        )
        if self._ready_file is not None:
            body: dict[str, Any] = {
                "tcp": listener.tcp,
                "unix": listener.unix,
                "web": self._web_address,
                "tls": self._certificates is not None,
                "pid": os.getpid(),
                "run": self._node.run,
                "ready_s": round(seconds, 6),
                "version": __version__,
                "python": platform.python_version(),
                "settings": settings_in_force(self._config),
            }
            aside = self._ready_file.with_name(self._ready_file.name + ".new")
            aside.write_text(json.dumps(body))
            aside.replace(self._ready_file)
        if self._starter is not None:
            self._starter.ready({"pid": os.getpid(), "run": self._node.run})

    def _end_when_idle(self, listener: Listener) -> None:
        """End if nobody has been connected for long enough; else look again when that may be so."""
        idle_s = self._config.server.exit_when_idle_s
        loop = asyncio.get_running_loop()
        # A reload may turn it on.
        # The web listener's own bus keeps no server up.
        connections = len(self._node.connections) + len(listener.plain) - (self._web is not None)
        left_s = until_idle_s(loop.time(), self._node.left_s, connections, idle_s) if idle_s else FLUSH_S
        if left_s > 0:
            loop.call_later(left_s, self._end_when_idle, listener)
            return
        emit("idle", idle_s=idle_s)
        if not self._stop.done():
            self._stop.set_result(None)

    def _look_after(self, listener: NativeListener) -> None:
        """What an operator would see to, if there were one."""
        if self._stop.done():
            return
        loop = asyncio.get_running_loop()
        bound_log(sys.stderr.fileno())
        if is_missing(Path(self._config.server.data, "lock")):
            detail = f"{self._config.server.data}: the directory is gone"
            self._fail(error("STORAGE_FAILED", detail, "Whoever removed it meant it; there is nothing left to serve."))
            return
        if listener.unix is not None and is_missing(listener.unix):
            self._restoring = loop.create_task(self._restore_socket(listener, listener.unix))
        loop.call_later(LOOK_AFTER_S, self._look_after, listener)

    async def _restore_socket(self, listener: NativeListener, path: str) -> None:
        try:
            await listener.listen_unix(path)
        except BrokerError as failure:
            self._fail(failure)
        else:
            emit("socket_restored", unix=path)

    def _end(self) -> None:
        emit("stopping", drain_s=self._config.server.drain_s)
        if not self._stop.done():
            self._stop.set_result(None)
        else:
            # A second signal: whoever sends it does not want to wait for the drain.
            for connection in list(self._node.connections):
                connection.end(error("GOING_AWAY", "the broker is stopping"))

    def _fail(self, failure: BrokerError) -> None:
        if not self._stop.done():
            self._stop.set_exception(failure)

    def _reload(self) -> None:
        try:
            config, waiting = self._config.reload()
        except BrokerError as failure:
            emit("reload_refused", code=failure.name, detail=failure.detail, hint=failure.hint)
            return
        self._config = config
        if self._web is not None:
            self._web.web.config = config
        set_log_level(config.server.log_level)
        self._node.reload(config.profiles, config.limits)
        if self._certificates is not None:
            self._certificates.look_now()
        emit("reloaded", waiting=",".join(waiting))
