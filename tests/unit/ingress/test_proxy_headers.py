"""What a client may not tell Ray Serve's proxy."""

from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.ingress.proxy_headers import MODEL_HEADER, ClientHeaders, middlewares

Headers = list[tuple[bytes, bytes]]


async def _pass(headers: Headers) -> Headers:
    seen: list[Headers] = []

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        seen.append(scope["headers"])

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(_: Message) -> None:
        raise AssertionError("nothing is sent")

    await ClientHeaders(app)({"type": "http", "headers": headers}, receive, send)
    return seen[0]


@pytest.mark.parametrize("name", [b"serve_multiplexed_model_id", b"Serve-Multiplexed-Model-Id"])
async def test_a_model_id_is_left_to_the_ingress(name: bytes) -> None:
    """The proxy would keep every id; the ingress checks it first."""
    assert await _pass([(name, b"caf\xe9")]) == [(MODEL_HEADER.encode(), b"caf\xe9")]


@pytest.mark.parametrize(
    "name", [b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id"]
)
async def test_what_steers_the_proxy_is_dropped(name: bytes) -> None:
    """A client sets no time limit but timeout_s."""
    kept = (b"accept", b"*/*")
    assert await _pass([(name, b"0"), kept]) == [kept]


async def test_only_a_sane_request_id_is_kept() -> None:
    """Bytes that are no text, or a text without end, are replaced."""
    sane = (b"x-request-id", b"abc-1")
    assert await _pass([sane]) == [sane]
    for value in (b"caf\xe9", b"", b"a" * 129, b"a b"):
        ((name, replaced),) = await _pass([(b"x-request-id", value)])
        assert name == b"x-request-id"
        assert replaced != value
        assert replaced.isalnum()


def test_ray_gets_a_list_of_middlewares() -> None:
    """As its callback asks for."""
    (middleware,) = middlewares()
    made: Any = middleware.cls
    assert made is ClientHeaders
