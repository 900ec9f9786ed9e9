"""A model folder whose disk hangs: every request ends, and what is known is answered."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from serve_app.ingress.app import create_api
from serve_app.ingress.limits import IngressLimits
from serve_app.registry.catalog import Registry
from tests.unit.ingress.fakes import Clock, FakeBackend, picture
from tests.unit.registry.support import FakeSource

PICTURE = {"content-type": "image/jpeg"}


@pytest.fixture
def disk() -> threading.Event:
    """Return what is set while the disk answers."""
    answers = threading.Event()
    answers.set()
    return answers


@pytest.fixture
async def client(
    disk: threading.Event, limits: IngressLimits, clock: Clock
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an API whose registry knows parts@1 from an hour ago."""

    def wait() -> None:
        assert disk.wait(10)

    registry = Registry(FakeSource(["parts@1"], on_scan=wait, on_look=wait), clock=clock)
    registry.refresh()
    clock.now += 3600
    api = create_api(FakeBackend(), registry, replace(limits, request_timeout_s=0.7))
    transport = httpx.ASGITransport(api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        disk.clear()
        yield client
        disk.set()


async def test_a_known_model_is_answered(client: httpx.AsyncClient) -> None:
    """It may be in memory, and that needs no disk, nor a thread that waits for one."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # as others use
    names = asyncio.gather(*(client.get(f"/v1/models/x{n}") for n in range(8)))
    await asyncio.sleep(0)
    for _ in range(8):
        answer = await client.post("/v1/models/parts/predict", content=picture(), headers=PICTURE)
        assert answer.status_code == 200
    assert {answer.status_code for answer in await names} == {504}


async def test_a_short_time_of_the_clients_own_holds(client: httpx.AsyncClient) -> None:
    """Also for the look for a name."""
    answer = await client.post("/v1/models/unknown/predict?timeout_s=0.1", headers=PICTURE)
    assert answer.status_code == 504
    assert "within 0.1 s" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/unknown/predict"),
        ("GET", "/v1/models/unknown"),
        ("POST", "/v1/models/unknown/load"),
        ("POST", "/v1/models/unknown/unpin"),
        ("POST", "/v1/models/unknown/unload"),
    ],
)
async def test_an_unknown_name_is_given_up_in_time(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    """Nobody can tell whether there is such a model."""
    answer = await client.request(method, path, headers=PICTURE)
    assert answer.status_code == 504
    assert answer.json()["code"] == "deadline_exceeded"
    assert "looking for unknown" in answer.json()["detail"]
