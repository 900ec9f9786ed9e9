"""The way to the detectors: retried once, full queues and lost replicas are 503."""

from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.errors import (
    DeadlineExceededError,
    Failure,
    ModelBrokenError,
    OverloadedError,
)
from serve_app.ingress.serve_backend import ServeBackend
from serve_app.types import ModelKey, PredictParams, PredictRequest, ReplicaReport

KEY = ModelKey("parts", "1")
REQUEST = PredictRequest(KEY, (b"picture",), PredictParams(), timeout_s=1.0)
REPORT = ReplicaReport("r1", 1, "n1", "cpu", 100, 50, None, ())


class Broadcast:
    """What a handle returns for a broadcast."""

    def __init__(self, outcome: list[object] | Exception) -> None:
        self._outcome = outcome

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[object]:
        """Return the answers, or raise."""
        assert timeout_s > 0
        assert return_exceptions
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class Handle:
    """A deployment handle that gives one outcome after another."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[tuple[str, str]] = []
        self._options: dict[str, str] = {}

    def options(self, **options: str) -> "Handle":
        """Take method and model id."""
        self._options = options
        return self

    async def remote(self, *_: object) -> object:
        """Answer one call."""
        self.calls.append((self._options["method_name"], self._options["multiplexed_model_id"]))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def broadcast(self, method: str, *_: object) -> Broadcast:
        """Answer for all replicas."""
        self.calls.append((method, ""))
        outcome: Any = self.outcomes.pop(0)
        return Broadcast(outcome)


def _backend(*outcomes: object) -> tuple[ServeBackend, Handle]:
    handle: Any = Handle(*outcomes)
    return ServeBackend(handle), handle


async def _predict(backend: ServeBackend) -> object:
    return await backend.predict(REQUEST)


def _unavailable() -> DeploymentUnavailableError:
    return DeploymentUnavailableError(DeploymentID("Detector", "yolo"))


async def test_predict_goes_to_the_replicas_of_its_model() -> None:
    """The model's key is the multiplexed model id."""
    backend, handle = _backend("result")
    assert await _predict(backend) == "result"
    assert handle.calls == [("predict", "parts@1")]


async def test_predict_is_tried_once_more_when_a_replica_dies() -> None:
    """One loss is not seen by the client; two are a 503."""
    backend, handle = _backend(ActorDiedError(), "result")
    assert await _predict(backend) == "result"
    assert len(handle.calls) == 2
    backend, handle = _backend(ActorDiedError(), ActorDiedError(), "never")
    with pytest.raises(OverloadedError) as caught:
        await backend.predict(REQUEST)
    assert caught.value.retry_after_s is not None
    assert len(handle.calls) == 2


@pytest.mark.parametrize("error", [lambda: BackPressureError(1, 1), _unavailable])
async def test_no_free_replica_is_a_503(error: Callable[[], Exception]) -> None:
    """A full queue, or a deployment that is down, is not tried again."""
    backend, handle = _backend(error(), "never")
    with pytest.raises(OverloadedError):
        await backend.predict(REQUEST)
    assert len(handle.calls) == 1


async def test_a_message_that_does_not_pass_is_a_503() -> None:
    """Ray hands gRPC's own error on, its code and all; clients get a problem of ours."""
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, nothing, nothing, "too large")
    backend, handle = _backend(error, "never")
    with pytest.raises(OverloadedError, match="the way to the detector replica failed"):
        await backend.predict(REQUEST)
    assert len(handle.calls) == 1


async def test_a_failure_becomes_the_error_that_it_was() -> None:
    """Code, detail and Retry-After survive the way."""
    backend, _ = _backend(Failure("model_broken", "it is cut short"))
    with pytest.raises(ModelBrokenError, match="it is cut short"):
        await backend.load(KEY, 1.0)


async def test_unload_counts_the_replicas_that_held_it() -> None:
    """Every replica is asked; one that refuses is told of."""
    backend, _ = _backend([True, False, True, ActorDiedError()])
    assert await backend.unload(KEY, 1.0) == 2
    backend, _ = _backend([True, ValueError("a defect")])
    with pytest.raises(ValueError, match="a defect"):
        await backend.unload(KEY, 1.0)
    backend, _ = _backend([True, Failure("overloaded", "in use", 1.0)])
    with pytest.raises(OverloadedError, match="in use"):
        await backend.unload(KEY, 1.0)
    backend, _ = _backend(_unavailable())
    with pytest.raises(OverloadedError):
        await backend.unload(KEY, 1.0)


async def test_replicas_leaves_out_what_does_not_answer() -> None:
    """A replica that dies meanwhile is no error; with none there is nothing ready."""
    backend, _ = _backend([ActorDiedError(), REPORT])
    assert await backend.replicas() == [REPORT]
    backend, _ = _backend(_unavailable(), [REPORT], TimeoutError(), TimeoutError())
    assert await backend.replicas() == []
    assert await backend.ready()
    assert not await backend.ready()
    with pytest.raises(DeadlineExceededError):
        await backend.replicas()
