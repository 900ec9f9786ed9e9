"""The detectors as the ingress reaches them: a few calls over a Ray Serve handle."""

import logging
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.errors import DeadlineExceededError, Failure, OverloadedError, from_failure
from serve_app.types import ModelKey, PredictRequest, PredictResult, ReplicaReport

logger = logging.getLogger(__name__)

T = TypeVar("T")

REPORT_TIMEOUT_S = 4.0
"""Shorter than the ingress gives it, so that the answer names the replicas."""


class ServeBackend:
    """Implements DetectorBackend over the handle of the Detector deployment."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """Call the Detector through `handle`."""
        self._handle = handle

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Answer on a replica that holds the model, if one does.

        Raises:
            ServeAppError: as the replica said, or overloaded when the queue is full
        """
        result: PredictResult = await self._call("predict", request.key, request)
        return result

    async def load(self, key: ModelKey, timeout_s: float) -> None:
        """Make a model resident on one replica, the one that holds it already if one does."""
        await self._call("load", key, key, timeout_s)

    async def unload(self, key: ModelKey, timeout_s: float) -> int:
        """Release a model on every replica; return how many held it."""
        answers = await self._broadcast("unload", key, timeout_s, timeout_s=timeout_s)
        return sum(_unwrap(answer) for answer in answers)

    async def replicas(self) -> list[ReplicaReport]:
        """Ask every replica for its state; one that dies meanwhile is left out.

        While a replica takes a new `user_config`, Ray routes nothing to it: it is left out, too.
        """
        try:
            reports = await self._broadcast("report", timeout_s=REPORT_TIMEOUT_S)
        except OverloadedError:
            return []
        return sorted(reports, key=lambda report: report.replica_id)

    async def ready(self) -> bool:
        """Return whether at least one replica answers."""
        try:
            return bool(await self.replicas())
        except DeadlineExceededError:
            return False

    async def _call(self, method: str, key: ModelKey, *arguments: object) -> Any:  # noqa: ANN401
        """Call one replica; when it dies, try once more: every call may be repeated."""
        handle = self._handle.options(method_name=method, multiplexed_model_id=str(key))
        for last in (False, True):
            try:
                return _unwrap(await handle.remote(*arguments))
            except BackPressureError:
                raise OverloadedError(
                    "all detector replicas are busy and the queue is full: try again later, "
                    "or raise the number of replicas"
                ) from None
            except DeploymentUnavailableError:
                raise OverloadedError("no detector replica could be started") from None
            except RayActorError:
                if last:
                    raise OverloadedError("the detector replicas are being replaced") from None
            except grpc.RpcError as error:
                # Ray passes on whatever gRPC says, but for a replica that is gone: a message over
                # its limit, a stream that broke. Trying again would send the same once more.
                logger.exception("the call of %s for %s failed on its way", method, key)
                raise OverloadedError(
                    "the way to the detector replica failed: try again later, or send less at once"
                ) from error
        raise AssertionError("unreachable")

    async def _broadcast(self, method: str, *arguments: object, timeout_s: float) -> list[Any]:
        """Call every replica; one that dies meanwhile gives no answer."""
        response = self._handle.broadcast(method, *arguments)
        try:
            answers = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        except DeploymentUnavailableError:
            raise OverloadedError("no detector replica is running now: try again later") from None
        except TimeoutError:
            raise DeadlineExceededError(
                f"not every replica answered {method!r} within {timeout_s:g} s: try again"
            ) from None
        alive = [answer for answer in answers if not isinstance(answer, RayActorError)]
        for answer in alive:
            if isinstance(answer, Exception):
                raise answer
        return alive


def _unwrap(answer: T | Failure) -> T:
    if isinstance(answer, Failure):
        raise from_failure(answer)
    return answer
