"""The ingress as a Ray Serve deployment: the API over a handle to the detectors."""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.ingress.app import create_api
from serve_app.ingress.limits import IngressLimits
from serve_app.ingress.serve_backend import ServeBackend
from serve_app.logs import join_serve_logs
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

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve calls this once in each replica, after the constructor."""
        return create_api(
            ServeBackend(self._detector),
            Registry.from_settings(self._args),
            IngressLimits.from_settings(self._args),
            send_request_id=False,  # Serve does
        )
