"""Keeps clients' headers away from Ray Serve, which trusts them.

Serve takes a model id, a session id, a time limit and a request id out of headers, unchecked: it
remembers every id that a client invents, and bytes that are no UTF-8 end in a raw 500. Its own
proxy does so, and with HAProxy in front the server in each ingress replica. Both call
`middlewares` first when RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it in the environment that
Serve is started in, as `python -m serve_app` sees to.
"""

import re
import uuid

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

MODEL_HEADER = "x-serve-app-model"
"""Carries on what a client wrote into `serve_multiplexed_model_id`, for the ingress to check."""

_RENAMED = {b"serve_multiplexed_model_id": MODEL_HEADER.encode()}
_DROPPED = {b"x_request_timeout_seconds", b"x_request_disconnect_disabled", b"x_session_id"}
_SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


def middlewares() -> list[Middleware]:
    """Return what Ray Serve is to run before it looks at a request."""
    return [Middleware(ClientHeaders)]


class ClientHeaders:
    """Renames, drops and mends the headers that Serve would act on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with harmless headers (ASGI)."""
        if scope["type"] in ("http", "websocket"):
            scope["headers"] = [kept for header in scope["headers"] for kept in _mend(*header)]
        await self._app(scope, receive, send)


def _mend(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    """Return the header as it may be passed on; an empty list drops it."""
    spelling = name.lower().replace(b"-", b"_")
    if spelling in _DROPPED:
        return []
    if spelling == b"x_request_id" and not _SANE_ID.fullmatch(value):
        return [(name, uuid.uuid4().hex.encode())]
    return [(_RENAMED.get(spelling, name), value)]
