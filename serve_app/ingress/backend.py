"""What the ingress asks of the deployment behind it."""

from typing import Protocol

from serve_app.types import ModelKey, PredictRequest, PredictResult, ReplicaReport


class DetectorBackend(Protocol):
    """Runs models somewhere; every method raises a ServeAppError when it cannot."""

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Answer the request; it is cancelled when its time is over or its client has gone."""

    async def load(self, key: ModelKey, timeout_s: float) -> None:
        """Return once the model is resident somewhere."""

    async def unload(self, key: ModelKey, timeout_s: float) -> int:
        """Release the model everywhere once unused; return how many replicas held it."""

    async def replicas(self) -> list[ReplicaReport]:
        """Return the state of every replica."""

    async def ready(self) -> bool:
        """Return whether a predict call can be answered now."""
