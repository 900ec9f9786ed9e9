"""The way to the detectors: retried once, full queues and lost replicas are 503."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.errors import (
    DeadlineExceededError,
    DeviceFailedError,
    Failure,
    ModelBrokenError,
    OverloadedError,
    QueueFullError,
    ReplicaFailingError,
)
from serve_app.fleet.plan import Orders
from serve_app.ingress.serve_backend import READY_TIMEOUT_S, ServeBackend
from serve_app.ingress.silence import ReplicaSilentError
from serve_app.types import ModelKey, PredictParams, PredictRequest, ReplicaReport

KEY = ModelKey("parts", "1")
REQUEST = PredictRequest(KEY, (b"picture",), PredictParams(), timeout_s=1.0)
REPORT = ReplicaReport("r1", 1, "n1", "cpu", 100, 50, None, ())


HANGS = object()
"""The outcome of a replica that does not answer."""


class Result:
    """One replica's answer to a broadcast."""

    def __init__(self, outcome: object) -> None:
        self._outcome = outcome

    async def get_async(self) -> object:
        """Return the answer, raise, or never return."""
        if self._outcome is HANGS:
            await asyncio.Event().wait()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


class Broadcast:
    """What a handle returns for a broadcast."""

    def __init__(self, outcome: list[object] | Exception) -> None:
        self._outcome = outcome

    async def _fetch_replica_results_async(self) -> list[Result]:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return [Result(one) for one in self._outcome]


class Handle:
    """A deployment handle that gives one outcome after another."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[tuple[str, str]] = []
        self.arguments: list[tuple[Any, ...]] = []
        self._options: dict[str, str] = {}

    def options(self, **options: str) -> "Handle":
        """Take method and model id."""
        self._options = options
        return self

    async def remote(self, *arguments: Any) -> object:  # noqa: ANN401
        """Answer one call."""
        self.arguments.append(arguments)
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


def _grpc(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, "for a reason")


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


LOSSES: list[Callable[[], object]] = [
    ActorDiedError,
    lambda: ActorUnavailableError("away", None),
    lambda: NodeDiedError("gone"),  # type: ignore[no-untyped-call]
    lambda: _grpc(grpc.StatusCode.UNAVAILABLE),
    lambda: _grpc(grpc.StatusCode.CANCELLED),
    lambda: grpc.aio.UsageError("Channel is closed."),
    lambda: DeviceFailedError("the device failed").to_failure(),
]


@pytest.mark.parametrize("loss", LOSSES)
async def test_whatever_takes_a_replica_away_costs_one_more_try(
    loss: Callable[[], object],
) -> None:
    """Its process, its node, its connection, its device; two in a row are told."""
    backend, handle = _backend(loss(), "result")
    assert await _predict(backend) == "result"
    backend, handle = _backend(loss(), loss(), "never")
    with pytest.raises((OverloadedError, DeviceFailedError)):
        await _predict(backend)
    assert len(handle.calls) == 2


async def test_the_second_try_has_the_time_that_is_left() -> None:
    """A client's deadline is one for both."""
    backend, handle = _backend(ActorDiedError(), "result")
    request = replace(REQUEST, timeout_s=30.0)
    await backend.predict(request)
    first, second = (arguments[0].timeout_s for arguments in handle.arguments)
    assert second < first <= 30.0
    backend, handle = _backend(ActorDiedError(), "never")
    with pytest.raises(OverloadedError):
        await backend.predict(replace(REQUEST, timeout_s=0.0))
    assert len(handle.calls) == 1


async def test_a_replica_that_makes_way_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not begun the call; another is asked, with pauses, as long as there is time."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("serve_app.ingress.serve_backend.asyncio.sleep", sleep)
    refusal = ReplicaFailingError("on its way out").to_failure()
    backend, handle = _backend(refusal, ActorDiedError(), refusal, refusal, refusal, "result")
    answer: object = await backend.predict(replace(REQUEST, timeout_s=30.0))
    assert answer == "result"
    assert pauses == [0.1, 0.2, 0.4, 0.8]
    backend, handle = _backend(refusal, "never")
    with pytest.raises(ReplicaFailingError):
        await backend.predict(replace(REQUEST, timeout_s=0.05))
    assert len(handle.calls) == 1


@pytest.mark.parametrize(
    "back", [ActorDiedError(), ReplicaFailingError("on its way out").to_failure()]
)
async def test_who_was_let_in_is_not_turned_away_later(
    back: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that comes back from a replica waits until the queue has room, or its time is over."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("serve_app.ingress.serve_backend.asyncio.sleep", sleep)
    full = BackPressureError(1, 1)
    backend, handle = _backend(back, full, full, "result")
    answer: object = await backend.predict(replace(REQUEST, timeout_s=30.0))
    assert answer == "result"
    assert pauses[-2:] in ([0.1, 0.2], [0.2, 0.4])
    backend, handle = _backend(ActorDiedError(), full, "never")
    with pytest.raises(QueueFullError):
        await backend.predict(replace(REQUEST, timeout_s=0.05))
    assert len(handle.calls) == 2


class Silence:
    """Stands in for the watch: so many replicas in a row are silent."""

    def __init__(self, count: int) -> None:
        self.left = count

    async def wait(self, call: Callable[[], Awaitable[object]]) -> object:
        """Make the call, and let it be in vain."""
        answer = await call()
        if self.left:
            self.left -= 1
            raise ReplicaSilentError
        return answer


@pytest.mark.parametrize("count", [0, 1, 3, 5])
async def test_silent_replicas_are_left_for_others(count: int) -> None:
    """Three times at most: after that it is the network, and the call waits where it is."""
    handle: Any = Handle(*["silent"] * min(count, 3), "result")
    silence: Any = Silence(count)
    answer: object = await ServeBackend(handle, silence).predict(REQUEST)
    assert answer == "result"
    assert len(handle.calls) == min(count, 3) + 1


async def test_who_left_a_silent_replica_is_not_turned_away() -> None:
    """It was let in once; nor does a replica that dies under it then end it."""
    handle: Any = Handle("silent", BackPressureError(1, 1), ActorDiedError(), "result")
    silence: Any = Silence(1)
    answer: object = await ServeBackend(handle, silence).predict(REQUEST)
    assert answer == "result"


async def test_a_full_queue_is_a_503() -> None:
    """It is told as what it is, and not tried again."""
    backend, handle = _backend(BackPressureError(1, 1), "never")
    with pytest.raises(QueueFullError):
        await backend.predict(REQUEST)
    assert len(handle.calls) == 1


async def test_a_deployment_that_is_down_is_a_503() -> None:
    """It is not tried again: no replica could be started."""
    backend, handle = _backend(_unavailable(), "never")
    with pytest.raises(OverloadedError):
        await backend.predict(REQUEST)
    assert len(handle.calls) == 1


async def test_a_defect_stays_one() -> None:
    """It is neither hidden nor repeated."""
    backend, handle = _backend(ValueError("a defect"), "never")
    with pytest.raises(ValueError, match="a defect"):
        await backend.predict(REQUEST)
    assert len(handle.calls) == 1


async def test_a_message_that_does_not_pass_is_a_503() -> None:
    """Ray hands gRPC's own error on, its code and all; clients get a problem of ours."""
    backend, handle = _backend(_grpc(grpc.StatusCode.RESOURCE_EXHAUSTED), "never")
    with pytest.raises(OverloadedError, match="the way to the detector replica failed"):
        await backend.predict(REQUEST)
    assert len(handle.calls) == 1


async def test_a_failure_becomes_the_error_that_it_was() -> None:
    """Code, detail and Retry-After survive the way."""
    backend, _ = _backend(Failure("model_broken", "it is cut short"))
    with pytest.raises(ModelBrokenError, match="it is cut short"):
        await backend.load(KEY, 1.0)


async def test_loads_and_orders_reach_all_and_the_named_answer() -> None:
    """A broadcast cannot choose: who is not named answers with nothing, who is gone not at all."""
    broken = Failure("model_broken", "cut short")
    backend, handle = _backend([("r1", None), None, ("r2", broken), ActorDiedError()], [None, None])
    assert await backend.load_on(KEY, ["r1", "r2", "r3"], 1.0) == {"r1": None, "r2": broken}
    await backend.order(Orders((), {}))
    assert handle.calls == [("load_on", ""), ("order", "")]


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
    backend, _ = _backend(
        _unavailable(), [REPORT], _unavailable(), [ActorDiedError()], TimeoutError(), TimeoutError()
    )
    assert await backend.replicas() == []
    assert await backend.ready()
    assert not await backend.ready(), "there is none"
    assert not await backend.ready(), "the last one is lost"
    assert not await backend.ready(), "the router knows of none"
    with pytest.raises(DeadlineExceededError):
        await backend.replicas()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backend wait for answers no longer than it takes to see that there is none."""
    for name in ("REPORT_TIMEOUT_S", "READY_TIMEOUT_S"):
        monkeypatch.setattr(f"serve_app.ingress.serve_backend.{name}", 0.01)


async def test_a_channel_that_closes_amid_a_broadcast_is_no_defect() -> None:
    """All are asked once more; then it is a 503."""
    closed = grpc.aio.UsageError("Channel is closed.")
    backend, handle = _backend(closed, [REPORT])
    assert await backend.replicas() == [REPORT]
    backend, handle = _backend([closed, REPORT])
    assert await backend.replicas() == [REPORT]
    backend, handle = _backend(closed, closed)
    with pytest.raises(OverloadedError, match="being replaced"):
        await backend.unload(KEY, 1.0)
    assert len(handle.calls) == 2


@pytest.mark.usefixtures("impatient")
async def test_one_replica_that_hangs_hides_no_other() -> None:
    """The others are shown and told; only where nobody answers there is nothing to tell."""
    backend, _ = _backend([HANGS, REPORT], [HANGS, None], [HANGS], [asyncio.CancelledError()])
    assert await backend.replicas() == [REPORT]
    await backend.order(Orders((), {}))
    with pytest.raises(DeadlineExceededError):
        await backend.replicas()
    assert await backend.replicas() == [], "a call that was given up is a lost replica"


@pytest.mark.usefixtures("impatient")
async def test_busy_is_ready() -> None:
    """A report that waits behind requests is no reason to send requests elsewhere."""
    backend, _ = _backend([HANGS, REPORT], [HANGS], [HANGS, ActorDiedError()])
    for _ in range(3):
        assert await backend.ready()


async def test_one_answer_is_enough_to_be_ready() -> None:
    """Probes are not kept waiting for the slowest replica."""
    backend, _ = _backend([HANGS, REPORT])
    async with asyncio.timeout(READY_TIMEOUT_S / 2):
        assert await backend.ready()


async def test_a_load_waits_only_for_those_that_it_names() -> None:
    """Of one that is late the others' answers do not tell; it is told as too late itself."""
    backend, _ = _backend([("r1", None), HANGS], [("r1", None), HANGS])
    async with asyncio.timeout(1.0):
        assert await backend.load_on(KEY, ["r1"], 30.0) == {"r1": None}
    answers = await backend.load_on(KEY, ["r1", "r2"], 0.01)
    assert answers["r1"] is None
    assert answers["r2"] is not None
    assert answers["r2"].code == "deadline_exceeded"


async def test_an_unload_that_is_not_confirmed_is_no_success() -> None:
    """A replica that does not answer may hold the model still."""
    backend, _ = _backend([True, HANGS])
    with pytest.raises(DeadlineExceededError):
        await backend.unload(KEY, 0.01)
