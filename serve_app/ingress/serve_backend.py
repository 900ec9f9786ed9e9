"""The detectors as the ingress reaches them: a few calls over a Ray Serve handle."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from serve_app.errors import (
    DeadlineExceededError,
    DeviceFailedError,
    Failure,
    OverloadedError,
    QueueFullError,
    ReplicaFailingError,
    ServeAppError,
    from_failure,
)
from serve_app.fleet.plan import Orders
from serve_app.ingress.broadcast import Answers, collect
from serve_app.ingress.limits import Deadline
from serve_app.ingress.silence import ReplicaSilentError, SilenceWatch
from serve_app.types import ModelKey, PredictRequest, PredictResult, ReplicaReport

logger = logging.getLogger(__name__)

T = TypeVar("T")

REPORT_TIMEOUT_S = 4.0
"""Shorter than the ingress gives it, so that the answer names the replicas."""
READY_TIMEOUT_S = 1.0
"""A replica that has not answered then is busy; shorter than the patience of probes."""
_ANSWER_SHARE = 0.95
"""Of the time for loading on several replicas, what each of them is given."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
"""Between attempts at a replica that has not begun the call; it ends in about a second."""

_MOST_SILENT = 3
"""So many silent replicas a call leaves; then it waits. Each move costs another one the same work,
and what it asks may be what silences them."""

_LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    ObjectLostError,
    ReplicaUnavailableError,
    DeviceFailedError,
    grpc.aio.UsageError,  # its channel was closed between being chosen and being called
)
_BROKEN_OFF = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)


class ServeBackend:
    """Implements DetectorBackend over the handle of the Detector deployment."""

    def __init__(self, handle: DeploymentHandle[Any], silence: SilenceWatch | None = None) -> None:
        """Call the Detector through `handle`; `silence` waits for its answers."""
        self._handle = handle
        self._silence = silence or SilenceWatch()

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Answer on a replica that holds the model, if one does.

        Raises:
            ServeAppError: as the replica said, or overloaded when the queue is full
        """
        result: PredictResult = await self._call(
            "predict",
            request.key,
            request.timeout_s,
            lambda left_s: (replace(request, timeout_s=left_s),),
        )
        return result

    async def load(self, key: ModelKey, timeout_s: float) -> str:
        """Make a model resident on one replica, the one that holds it already if one does."""
        replica_id: str = await self._call("load", key, timeout_s, lambda left_s: (key, left_s))
        return replica_id

    async def load_on(
        self, key: ModelKey, replica_ids: Collection[str], timeout_s: float
    ) -> dict[str, Failure | None]:
        """Make a model resident on the named replicas; one that is gone is not in the answer."""
        names = set(replica_ids)
        in_time_s = timeout_s * _ANSWER_SHARE

        def all_named(answers: Sequence[Any]) -> bool:
            return names <= _named(answers).keys()

        sent = await self._broadcast(
            "load_on", key, tuple(names), in_time_s, timeout_s=timeout_s, enough=all_named
        )
        answers = _named(_alive(sent))
        if sent.waiting:
            late = _too_late("load_on", timeout_s).to_failure()
            answers |= dict.fromkeys(names - answers.keys(), late)
        return answers

    async def order(self, orders: Orders) -> None:
        """Tell every replica what it is to hold; their loads go on after this returns.

        One that does not take it in time is told again, as its report shows.
        """
        _alive(await self._broadcast("order", orders, timeout_s=REPORT_TIMEOUT_S))

    async def unload(self, key: ModelKey, timeout_s: float) -> int:
        """Release a model on every replica; return how many held it."""
        answers = await self._broadcast("unload", key, timeout_s, timeout_s=timeout_s)
        count: int = sum(_unwrap(answer) for answer in _alive(answers))
        if answers.waiting:
            raise _too_late("unload", timeout_s)
        return count

    async def replicas(self) -> list[ReplicaReport]:
        """Ask every replica for its state; one that dies meanwhile or hangs is left out.

        While a replica takes a new `user_config`, Ray routes nothing to it: it is left out, too.

        Raises:
            DeadlineExceededError: there are replicas, and none of them answered in time
        """
        try:
            answers = await self._broadcast("report", timeout_s=REPORT_TIMEOUT_S)
        except OverloadedError:
            return []
        reports: list[ReplicaReport] = _alive(answers)
        if answers.waiting and not reports:
            raise _too_late("report", REPORT_TIMEOUT_S)
        return sorted(reports, key=lambda report: report.replica_id)

    async def ready(self) -> bool:
        """Return whether at least one replica answers, or is there and busy.

        A report waits its turn among requests, so a full replica answers late. One that hangs is
        taken away by Ray's health checks.
        """

        def one_answered(answers: Sequence[Any]) -> bool:
            return any(not isinstance(answer, Exception) for answer in answers)

        try:
            answers = await self._broadcast(
                "report", timeout_s=READY_TIMEOUT_S, enough=one_answered
            )
        except (OverloadedError, DeadlineExceededError):
            return False
        return one_answered(answers.values) or answers.waiting > 0

    async def _call(
        self,
        method: str,
        key: ModelKey,
        timeout_s: float,
        arguments: Callable[[float], tuple[object, ...]],
    ) -> Any:  # noqa: ANN401
        """Call one replica, and once more if it is lost meanwhile: every call may be repeated.

        One that cannot begin the call, since it is being replaced, costs nothing: the call is made
        again as long as there is time, and goes elsewhere once that one has ended. One that gives
        no sign of life is left for another. While there is none, Ray's router waits for one. A call
        that was let into the queue once is not turned away when that is full as it comes back.

        arguments: returns those of the call, given the seconds that are left
        """
        handle = self._handle.options(method_name=method, multiplexed_model_id=str(key))
        deadline = Deadline(timeout_s)
        was_lost = came_back = False
        silent = 0
        pause_s = _FIRST_PAUSE_S

        def send() -> Awaitable[Any]:
            return handle.remote(*arguments(deadline.left_s))

        while True:
            try:
                answer = self._silence.wait(send) if silent < _MOST_SILENT else send()
                return _unwrap(await answer)
            except ReplicaSilentError:
                silent += 1
                came_back = True
                logger.warning("%s with %s goes elsewhere, a replica is silent", method, key)
            except Exception as error:
                if isinstance(error, ReplicaFailingError) or (
                    came_back and isinstance(error, BackPressureError)
                ):
                    if deadline.left_s <= pause_s:
                        raise _explain(error, method, key) from None
                    came_back = True
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                    continue
                if not _is_lost(error):
                    raise _explain(error, method, key) from None
                if was_lost or not deadline.left_s:
                    raise _explain_lost(error) from None
                was_lost = came_back = True
                logger.warning(
                    "%s with %s is tried once more, a replica is lost: %r", method, key, error
                )

    async def _broadcast(
        self,
        method: str,
        *arguments: object,
        timeout_s: float,
        enough: Callable[[Sequence[Any]], bool] = lambda _: False,
    ) -> Answers:
        """Call every replica; return what came back until it was `enough` or the time over."""

        def once() -> Awaitable[Answers]:
            return collect(self._handle.broadcast(method, *arguments), timeout_s, enough)

        try:
            try:
                return await once()
            except grpc.aio.UsageError:
                # A replica was taken off the list amid the sending; to be told twice is harmless.
                await asyncio.sleep(_FIRST_PAUSE_S)
                return await once()
        except DeploymentUnavailableError:
            raise OverloadedError("no detector replica is running now: try again later") from None
        except grpc.aio.UsageError as error:
            raise _explain_lost(error) from None
        except TimeoutError:
            raise _too_late(method, timeout_s) from None


def _alive(answers: Answers) -> list[Any]:
    """Return the answers without those of replicas that died meanwhile; raise any defect."""
    alive = [
        answer
        for answer in answers.values
        if not (isinstance(answer, Exception) and _is_lost(answer))
    ]
    for answer in alive:
        if isinstance(answer, Exception):
            raise answer
    return alive


def _named(answers: Sequence[Any]) -> dict[str, Failure | None]:
    """Return what came of a load on those replicas that were to load, by id."""
    return dict(answer for answer in answers if isinstance(answer, tuple))


def _too_late(method: str, timeout_s: float) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"not every replica answered {method!r} within {timeout_s:g} s: try again"
    )


def _is_lost(error: Exception) -> bool:
    """Whether the replica ended or failed under a call, so that another may answer it."""
    if isinstance(error, grpc.RpcError):
        # Ray takes UNAVAILABLE for an actor that is away; a server that ends may say otherwise.
        return isinstance(error, grpc.aio.AioRpcError) and error.code() in _BROKEN_OFF
    return isinstance(error, _LOST)


def _explain(error: Exception, method: str, key: ModelKey) -> Exception:
    """Return what a client is told of an error that no other replica would spare it."""
    if isinstance(error, BackPressureError):
        return QueueFullError(
            "all detector replicas are busy and the queue is full: try again later, or raise the "
            "number of replicas"
        )
    if isinstance(error, DeploymentUnavailableError):
        return OverloadedError("no detector replica could be started")
    if isinstance(error, grpc.RpcError):
        # A message over gRPC's limit, say. Trying again would send the same once more.
        logger.error("the call of %s for %s failed on its way", method, key, exc_info=error)
        return OverloadedError(
            "the way to the detector replica failed: try again later, or send less at once"
        )
    return error


def _explain_lost(error: Exception) -> ServeAppError:
    """Return what a client is told whose call was lost twice, or with no time left."""
    if isinstance(error, DeviceFailedError):
        return error
    return OverloadedError("the detector replicas are being replaced: try again later")


def _unwrap(answer: T | Failure) -> T:
    if isinstance(answer, Failure):
        raise from_failure(answer)
    return answer
