"""What the ingress asks of the deployment behind it."""

from typing import Protocol

from serve_app.fleet.keeper import Fleet
from serve_app.types import PredictRequest, PredictResult


class DetectorBackend(Fleet, Protocol):
    """Runs models somewhere; every method raises a ServeAppError when it cannot."""

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Answer the request; it is cancelled when its time is over or its client has gone."""

    async def ready(self) -> bool:
        """Return whether a predict call can be answered now."""
