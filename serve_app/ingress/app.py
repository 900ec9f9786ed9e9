"""Puts the HTTP API together; nothing here knows of Ray."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from serve_app.fleet.keeper import FleetKeeper
from serve_app.ingress import openapi
from serve_app.ingress.backend import DetectorBackend
from serve_app.ingress.limits import InFlight, IngressLimits
from serve_app.ingress.overload import Backlog
from serve_app.ingress.problems import ResponseGuard, add_problem_handlers
from serve_app.ingress.responses import versions
from serve_app.ingress.routes_models import models_router
from serve_app.ingress.routes_predict import predict_router
from serve_app.ingress.routes_status import status_router
from serve_app.ingress.services import Services
from serve_app.registry.catalog import Registry
from serve_app.registry.live import AsyncRegistry


def create_api(
    backend: DetectorBackend,
    registry: Registry,
    limits: IngressLimits,
    *,
    send_request_id: bool = True,
) -> FastAPI:
    """Return the API over `backend`, for the models of `registry`, within `limits`.

    send_request_id: False where the server around it sends the header X-Request-Id itself
    """
    keeper = FleetKeeper(backend)
    models = AsyncRegistry(registry)

    @asynccontextmanager
    async def keep_pins(_: FastAPI) -> AsyncIterator[None]:
        models.begin()  # while the detectors start: of 10,000 cards it takes seconds
        keeping = asyncio.create_task(keeper.run())
        yield
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    app = FastAPI(
        title="serve_app",
        version=versions().get("serve_app", "unknown"),
        description=openapi.DESCRIPTION,
        # /docs is ours: FastAPI's page needs a CDN.
        docs_url=None,
        redoc_url=None,
        # A redirect would send the whole picture twice.
        redirect_slashes=False,
        lifespan=keep_pins,
    )
    in_flight = InFlight(limits.max_inflight_bytes)
    backlog = Backlog(limits.max_wait_s, replicas=lambda: keeper.replica_count)
    Services(backend, keeper, models, limits, in_flight, backlog).attach(app)
    for router in (predict_router(), models_router(), status_router()):
        app.include_router(router)
    add_problem_handlers(app)
    app.add_middleware(ResponseGuard, send_request_id=send_request_id)
    openapi.describe(app)
    return app
