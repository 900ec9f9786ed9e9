"""What collecting the answers of a broadcast takes from Ray."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from ray.serve._private import replica_result
from ray.serve.handle import DeploymentBroadcastResponse

from serve_app.ingress.broadcast import Answers, collect


class Result:
    """A replica's answer as Ray's router returns it: by `get_async`."""

    def __init__(self, answer: object = None, *, hangs: bool = False) -> None:
        self._answer, self._hangs = answer, hangs

    async def get_async(self) -> object:
        """Return the answer, raise it, or never return."""
        if self._hangs:
            await asyncio.Event().wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.fixture
def router_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return an event loop in a thread of its own, as Ray's router has."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _sent(*results: Result) -> list[Any]:
    return list(results)


async def test_answers_come_one_by_one(router_loop: asyncio.AbstractEventLoop) -> None:
    """Ray's own response object gives the results of its router, wherever that runs."""
    defect = ValueError("no")
    for loop in (router_loop, asyncio.get_running_loop(), None):
        sent = _sent(Result("yes"), Result(defect), Result(hangs=True))
        answers = await collect(DeploymentBroadcastResponse(sent, loop), 0.1)
        assert set(answers.values) == {"yes", defect}
        assert answers.waiting == 1


async def test_a_call_that_is_not_sent_is_too_late(router_loop: asyncio.AbstractEventLoop) -> None:
    """As long as the router knows no replica it waits."""

    async def never() -> list[Any]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(TimeoutError):
        await collect(DeploymentBroadcastResponse(never(), router_loop), 0.1)


async def test_enough_ends_the_wait(router_loop: asyncio.AbstractEventLoop) -> None:
    """Whoever has not answered by then is not waited for."""
    sent = _sent(Result("yes"), Result(hangs=True))
    response = DeploymentBroadcastResponse(sent, router_loop)
    async with asyncio.timeout(10):
        assert await collect(response, 60, enough=bool) == Answers(("yes",), 1)


def test_every_kind_of_result_has_its_own_answer() -> None:
    """Over gRPC and by Ray's actor calls."""
    for kind in (replica_result.ActorReplicaResult, replica_result.gRPCReplicaResult):
        assert inspect.iscoroutinefunction(inspect.unwrap(kind.get_async))
        assert list(inspect.signature(kind.get_async).parameters) == ["self"]
