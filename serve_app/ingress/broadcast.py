"""The answers of all replicas to one call, each by itself; touches a private name of Ray.

Ray's `results_async` gives either all answers in time or none, so one replica that hangs would hide
all others, and `results` takes a thread for each answer. Written against Ray 2.60
(`ray/serve/handle.py`); tests/contracts/test_broadcast.py holds it to that.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentBroadcastResponse


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back: answers and exceptions, and how many replicas have not answered."""

    values: tuple[Any, ...]
    waiting: int


async def collect(
    response: DeploymentBroadcastResponse,
    timeout_s: float,
    enough: Callable[[Sequence[Any]], bool] = lambda _: False,
) -> Answers:
    """Wait until all replicas have answered, the time is over, or what came in is `enough`.

    Raises:
        TimeoutError: the call could not even be sent to the replicas in time
        DeploymentUnavailableError: there is no replica
    """
    now = asyncio.get_running_loop().time
    deadline = now() + timeout_s
    results = await asyncio.wait_for(response._fetch_replica_results_async(), timeout_s)
    waiting = {asyncio.ensure_future(_answer(result)) for result in results}
    try:
        values: list[Any] = []
        while waiting and not enough(values) and (left_s := deadline - now()) > 0:
            done, waiting = await asyncio.wait(
                waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            # A call that a replica cancelled was lost with it: that is no answer.
            ended = [task for task in done if not task.cancelled()]
            values += [task.exception() or task.result() for task in ended]
        return Answers(tuple(values), len(waiting))
    finally:
        for task in waiting:
            task.cancel()
        asyncio.gather(*waiting, return_exceptions=True)  # nobody else takes their errors


async def _answer(result: Any) -> Any:  # noqa: ANN401 (a class of Ray's that has no public name)
    return await result.get_async()
