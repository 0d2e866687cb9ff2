"""An outside client of the HTTP API: the standard library, and a reader of server-sent events as browsers have it."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

PATIENCE_S = 20.0


class Answer(NamedTuple):
    """What a request was answered."""

    status: int
    headers: dict[str, str]
    body: Any


class Http:
    """Requests to one server, over one connection.

    Args:
        address: The web listener's, `host:port`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> Answer:
        """Send a request; a body that is no bytes is sent as JSON, and an answer that is JSON is taken apart."""
        given = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            given.setdefault("content-type", "application/json")
        target = f"{path}?{urlencode(query, doseq=True)}" if query else path
        self._connection.request(method, target, body, given)
        response = self._connection.getresponse()
        text = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = "json" in found.get("content-type", "")
        return Answer(response.status, found, json.loads(text) if is_json else text)

    def get(self, path: str, **query: Any) -> Answer:
        """Send a GET."""
        return self.ask("GET", path, **query)

    def publish(self, channel: str, *texts: str, **members: object) -> Answer:
        """Publish texts to a channel."""
        body: dict[str, object] = {"channel": channel, **members}
        if len(texts) == 1:
            body["text"] = texts[0]
        elif texts:
            body["messages"] = [{"text": text} for text in texts]
        return self.ask("POST", "/v1/publish", body)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


class Event(NamedTuple):
    """A server-sent event; `id` is the last that was sent by then."""

    name: str
    id: str
    data: Any


class Events:
    """A stream of events.

    Args:
        address: The web listener's.
        last_id: Sent as `Last-Event-ID`.
        token: Who asks.
        receive_bytes: Of the socket's buffer, for one that is to fill up soon.
        query: Of the request.
    """

    def __init__(
        self, address: str, last_id: str | None = None, receive_bytes: int = 0, token: str = "", **query: Any
    ) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE_S)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect((host, int(port)))
        seen = f"Last-Event-ID: {last_id}\r\n" if last_id is not None else ""
        seen += f"Authorization: Bearer {token}\r\n" if token else ""
        self.socket.sendall(
            f"GET /v1/subscribe?{urlencode(query, doseq=True)} HTTP/1.1\r\nHost: {address}\r\n{seen}\r\n".encode()
        )
        self._text = b""
        self._id = ""
        head = self._take(b"\r\n\r\n").decode().split("\r\n")
        self.status = int(head[0].split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def _take(self, end: bytes) -> bytes:
        while end not in self._text:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._text += data
        taken, _, self._text = self._text.partition(end)
        return taken

    def __next__(self) -> Event:
        while True:
            name, data = "message", ""
            for line in self._take(b"\n\n").decode().split("\n"):
                member, _, value = line.partition(": ")
                if member == "event":
                    name = value
                elif member == "id":
                    self._id = value
                elif member == "data":
                    data += value
            if data:
                return Event(name, self._id, json.loads(data))

    def __iter__(self) -> Iterator[Event]:
        return self

    def rest(self) -> bytes:
        """Return what comes until the server ends the stream, as it is."""
        text = self._text
        while data := self.socket.recv(1 << 16):
            text += data
        return text

    def messages(self, count: int) -> list[tuple[str, int, str]]:
        """Return the next messages, as channel, sequence and text."""
        found: list[tuple[str, int, str]] = []
        while len(found) < count:
            event = next(self)
            if event.name == "message":
                channel = event.data["channel"]
                found += [(channel, each["seq"], each["text"]) for each in event.data["messages"] if "gone" not in each]
        return found

    @property
    def last_id(self) -> str:
        """The last `id` that came."""
        return self._id
