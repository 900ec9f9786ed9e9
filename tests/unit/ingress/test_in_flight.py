"""The bytes of all requests in progress are bounded, and given back however a request ends."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from serve_app.errors import ModelBrokenError, OverloadedError
from serve_app.ingress.limits import InFlight
from serve_app.settings import AppArgs, SettingsError
from tests.unit.ingress.fakes import FakeBackend, picture

URL = "/v1/models/parts/predict"
PADDED = picture() + bytes(200 * 1024)
"""A picture of 200 KiB, of which two and a half fit."""


async def _two_large_calls(
    client: httpx.AsyncClient, backend: FakeBackend
) -> list[asyncio.Task[httpx.Response]]:
    """Return two calls that have reached the backend, which keeps them."""
    backend.delay_s = 30
    calls = [asyncio.create_task(client.post(URL, content=PADDED)) for _ in range(2)]
    async with asyncio.timeout(5):
        # Polled: the headers are checked in a thread, whose end nobody announces.
        while len(backend.predicted) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return calls


def _held(api: FastAPI) -> int:
    held: int = api.state.services.in_flight.held_bytes
    return held


async def test_what_does_not_fit_is_refused_before_it_is_read(
    client: httpx.AsyncClient, backend: FakeBackend, api: FastAPI
) -> None:
    """The third large body is a 503 with Retry-After, a small one still passes."""
    calls = await _two_large_calls(client, backend)
    assert _held(api) == 2 * len(PADDED)

    async def never_read() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    headers = {"content-length": str(len(PADDED))}
    refused = await client.post(URL, content=never_read(), headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    backend.delay_s = 0
    assert (await client.post(URL, content=picture())).status_code == 200
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert _held(api) == 0


async def test_a_body_of_unknown_length_is_counted_as_it_comes(
    client: httpx.AsyncClient, backend: FakeBackend, api: FastAPI
) -> None:
    """Chunks are refused when the room is full."""
    calls = await _two_large_calls(client, backend)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(10 * 1024)

    assert (await client.post(URL, content=chunks())).status_code == 503
    assert _held(api) == 2 * len(PADDED)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("content", [picture(), b"no picture", b""])
async def test_bytes_are_given_back(
    client: httpx.AsyncClient, backend: FakeBackend, api: FastAPI, content: bytes
) -> None:
    """After answers, bad pictures and failures alike."""
    await client.post(URL, content=content)
    backend.error = ModelBrokenError("cut short")
    await client.post(URL, content=content)
    assert _held(api) == 0


def test_a_refused_take_holds_nothing() -> None:
    """What was counted before it is given back, what was refused was never counted."""
    in_flight = InFlight(10)
    with in_flight.hold() as holding:
        holding.take(8)
        with pytest.raises(OverloadedError):
            holding.take(3)
        assert in_flight.held_bytes == 8
    assert in_flight.held_bytes == 0


def test_the_largest_body_must_fit() -> None:
    """Less room than one body may take is a contradiction."""
    with pytest.raises(SettingsError, match="max_inflight_bytes: 1048576 is less than max_body"):
        AppArgs.parse({"max_inflight_bytes": "1MiB", "max_body_bytes": "2MiB"})
