"""The ingress as a Ray Serve deployment: the API over a handle to the detectors."""

import asyncio
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app import lag
from serve_app.ingress.app import create_api
from serve_app.ingress.limits import IngressLimits
from serve_app.ingress.serve_backend import ServeBackend
from serve_app.logs import join_serve_logs
from serve_app.metrics import lag_observer
from serve_app.registry.catalog import Registry
from serve_app.settings import AppArgs


@serve.ingress()
class Ingress:
    """Checks each request, resolves its model and passes it on."""

    def __init__(self, args: AppArgs, detector: DeploymentHandle[Any]) -> None:
        """`detector` is the handle that Ray Serve makes of the bound Detector."""
        join_serve_logs()
        self._args = args
        self._detector = detector
        self._watching: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve calls this once in each replica, after the constructor."""
        self._watching = asyncio.create_task(lag.watch(lag_observer()))
        return create_api(
            ServeBackend(self._detector),
            Registry.from_settings(self._args),
            IngressLimits.from_settings(self._args),
            send_request_id=False,  # Serve does
        )

    async def __del__(self) -> None:
        """Ray calls this once when the replica stops."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
