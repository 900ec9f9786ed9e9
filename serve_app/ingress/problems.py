"""Errors as RFC 9457 problem documents, and the guard around every response.

`type` is `urn:serve-app:problem:<code>`; both stay the same for ever, `title` and `detail` are for
people and may change.
"""

import json
import logging
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import InvalidParameterError, ServeAppError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:serve-app:problem:"
_REQUEST_ID_KEY = "serve_app.request_id"
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told of an error."""

    status: int
    code: str
    title: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self, request_id: str) -> Response:
        """Return the problem document."""
        content = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        return Response(encode(content), self.status, dict(self.headers), MEDIA_TYPE)


def encode(content: object) -> bytes:
    """Return JSON; what UTF-8 cannot hold (lone surrogates) becomes a question mark.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `content` as a JSON answer."""
    return Response(encode(content), status, headers, "application/json")


def from_error(error: ServeAppError) -> Problem:
    """Return the problem that `error` is to a client."""
    headers = {}
    if error.status == 503 or error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 0)))
    return Problem(error.status, error.code, error.title, error.detail, headers)


def from_framework(request: Request, error: HTTPException) -> Problem:
    """Return the problem for what the framework itself refuses."""
    # Not request.url: it is built from the Host header, and a malformed one raises.
    path = request.scope["path"][:200]
    headers = dict(error.headers or {})
    if error.status_code == 404:
        detail = f"there is nothing at {path!r}: /docs shows the paths"
        if path.startswith("/v1/models/"):
            detail += "; a model reference holds no '/', encoded or not"
        return Problem(404, "not_found", "Not found", detail, headers)
    if error.status_code == 405:
        allowed = headers.get("Allow", "another method")
        detail = f"{request.method[:20]!r} is not possible at {path!r}: use {allowed}"
        return Problem(405, "method_not_allowed", "Method not allowed", detail, headers)
    return Problem(
        error.status_code, "bad_request", "Bad request", str(error.detail)[:500], headers
    )


def request_id(request: Request) -> str:
    """Return the id under which this request is answered and logged."""
    return str(request.scope.get(_REQUEST_ID_KEY, ""))


def add_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem document, the framework's own included."""

    async def on_serve_app_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServeAppError)  # noqa: S101 - registered for this class alone
        return from_error(error).response(request_id(request))

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class alone
        return from_framework(request, error).response(request_id(request))

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
        wrong = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        problem = from_error(InvalidParameterError("; ".join(wrong)[:500]))
        return problem.response(request_id(request))

    async def on_disconnect(request: Request, _: Exception) -> Response:
        detail = "the connection was closed before the whole body had arrived"
        problem = Problem(499, "client_closed_request", "Client closed request", detail)
        return problem.response(request_id(request))

    app.add_exception_handler(ServeAppError, on_serve_app_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)


class ResponseGuard:
    """Gives every response its request id, and turns a defect of ours into a problem document."""

    def __init__(self, app: ASGIApp, *, send_request_id: bool) -> None:
        self._app = app
        self._send_request_id = send_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent_id = Headers(scope=scope).get("x-request-id", "")
        sane = _SANE_REQUEST_ID.fullmatch(sent_id)
        scope[_REQUEST_ID_KEY] = used_id = sent_id if sane else str(uuid.uuid4())
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._send_request_id:
                    MutableHeaders(scope=message)["X-Request-Id"] = used_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed unexpectedly", used_id)
            if started:
                raise
            detail = f"a defect of the server; its log holds more under the request id {used_id}"
            problem = Problem(500, "internal_error", "Internal error", detail)
            await problem.response(used_id)(scope, receive, send_with_id)
