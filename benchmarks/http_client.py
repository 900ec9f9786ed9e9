"""Raw HTTP/1.1 over kept-alive connections: an ordinary client would take more of the cores."""

import asyncio
from dataclasses import dataclass, field
from typing import cast

import httptools

from benchmarks.records import NO_ANSWER


@dataclass(slots=True)
class Response:
    """An answer; header names in lower case."""

    status: int = NO_ANSWER
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._response = Response()
        self._parser = httptools.HttpResponseParser(self)
        self._keep = True

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and self._keep and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Response:
        """Send a whole request and return its answer.

        Raises:
            ConnectionError: the server closed the connection before it had answered
        """
        if self._transport is None:
            raise ConnectionError("the connection is closed")
        self._waiter = asyncio.get_running_loop().create_future()
        self._response = Response()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        try:
            return await self._waiter
        except asyncio.CancelledError:
            self.close()  # its answer may still come, and would be taken for the next one's
            raise
        finally:
            self._waiter = None

    def close(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"malformed answer: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._fail(ConnectionError("the server closed the connection"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._response.body += body

    def on_message_complete(self) -> None:
        """See httptools."""
        self._response.status = self._parser.get_status_code()
        self._keep = self._parser.should_keep_alive()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._response)

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


class Client:
    """As many connections to one server as there are requests at the same time."""

    def __init__(self, host: str, port: int) -> None:
        """Talk to `host`:`port`; nothing is connected yet."""
        self._address = (host, port)
        self._idle: list[Connection] = []

    def message(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> bytes:
        """Return the bytes of a request, to be made before the time counts."""
        host, port = self._address
        lines = [f"{method} {path} HTTP/1.1", f"host: {host}:{port}"]
        if body:
            lines += [f"content-length: {len(body)}", "content-type: image/jpeg"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def ask(self, message: bytes, timeout_s: float) -> Response:
        """Send `message` and return its answer; status 0 where none came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._take()
                response = await connection.ask(message)
        except (OSError, TimeoutError) as error:
            return Response(body=f"{type(error).__name__}: {error}".encode())
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address)
        return connection
