"""What the routes share; it hangs on the application, so that nothing is global."""

from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request

from serve_app.errors import ServeAppError
from serve_app.fleet.keeper import FleetKeeper
from serve_app.ingress.backend import DetectorBackend
from serve_app.ingress.limits import Deadline, InFlight, IngressLimits
from serve_app.ingress.overload import Backlog
from serve_app.ingress.parameters import Parameter, parse_values
from serve_app.registry.live import AsyncRegistry
from serve_app.types import ModelKey, ModelRef, ReplicaReport

T = TypeVar("T")

_REPORT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Services:
    """The deployment behind the ingress, the models that exist, and the limits of a request."""

    backend: DetectorBackend
    fleet: FleetKeeper
    registry: AsyncRegistry
    limits: IngressLimits
    in_flight: InFlight
    backlog: Backlog

    def attach(self, app: FastAPI) -> None:
        """Make these the services of `app`."""
        app.state.services = self

    @classmethod
    def of(cls, request: Request) -> "Services":
        """Return the services of the application that answers `request`."""
        services: Services = request.app.state.services
        return services

    async def key_of(self, reference: str, deadline: Deadline) -> ModelKey:
        """Return the version that a client's reference means.

        Raises:
            DeadlineExceededError: the place where the models lie did not answer in time
            InvalidParameterError: it is malformed
            ModelNotFoundError: it does not exist
        """
        ref = ModelRef.parse(reference)
        return await deadline.bound(self.registry.resolve(ref), f"looking for {ref}")

    async def reports(self) -> list[ReplicaReport]:
        """Return the state of every replica; an error when they do not answer soon."""
        deadline = Deadline(_REPORT_TIMEOUT_S)
        return await deadline.bound(self.backend.replicas(), "asking the replicas for their state")

    async def reports_or_none(self) -> list[ReplicaReport] | None:
        """Return the state of every replica, None when they cannot be asked."""
        try:
            return await self.reports()
        except ServeAppError:
            return None


def query_values(request: Request, *known: Parameter) -> dict[str, Any]:
    """Return the values of the query's parameters; raise InvalidParameterError for any other."""
    return parse_values(request.query_params.multi_items(), known)
