"""The API over a fake backend and a real repository of three model versions."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from serve_app.ingress.app import create_api
from serve_app.ingress.limits import IngressLimits
from serve_app.registry.catalog import Registry
from serve_app.registry.folder import FolderScanner
from tests.unit.ingress.fakes import Clock, FakeBackend

CARD = "description: Screws and nuts\ntask: detect\nclasses: [bolt, nut]\nimgsz: 320\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a folder with parts@1, parts@2 and codes@1."""
    for place in ("parts/1", "parts/2", "codes/1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model.pt").write_bytes(b"weights")
    (tmp_path / "parts/2/model.yaml").write_text(CARD + "evaluation: {map50: 0.97}\n")
    return tmp_path


@pytest.fixture
def backend() -> FakeBackend:
    """Return a backend that answers at once."""
    return FakeBackend()


@pytest.fixture
def clock() -> Clock:
    """Return the registry's clock."""
    return Clock()


@pytest.fixture
def limits() -> IngressLimits:
    """Return small limits, so that tests reach them cheaply."""
    return IngressLimits(
        max_body_bytes=256 * 1024,
        max_inflight_bytes=512 * 1024,
        max_image_pixels=1_000_000,
        max_images_per_request=3,
        request_timeout_s=5.0,
    )


@pytest.fixture
def api(backend: FakeBackend, repository: Path, limits: IngressLimits, clock: Clock) -> FastAPI:
    """Return the API as the ingress deployment makes it."""
    return create_api(backend, Registry(FolderScanner(repository), clock=clock), limits)


@pytest.fixture
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the API."""
    transport = httpx.ASGITransport(api)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
