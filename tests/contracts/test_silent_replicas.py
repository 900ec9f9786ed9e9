"""Silent replicas: what the request router takes from Ray to know them and to leave them alone."""

import asyncio
import concurrent.futures
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.router import AsyncioRouter, CurrentLoopRouter
from ray.serve._private.test_utils import FakeRunningReplica
from ray.serve.handle import DeploymentResponse

from serve_app.ingress.silence import ReplicaSilentError, SilenceWatch
from serve_app.routing.recipient import Recipient, StalledError, following, note
from serve_app.routing.router import FleetRouter
from serve_app.routing.silent import Late
from serve_app.routing.stats import RoutingStats


@pytest.fixture
async def router() -> AsyncIterator[FleetRouter]:
    """A router as Serve makes one."""
    made = FleetRouter(
        deployment_id=DeploymentID("Detector", "yolo"),
        handle_source=DeploymentHandleSource.REPLICA,
        self_actor_id="actor",
        use_replica_queue_len_cache=True,
        initial_backoff_s=0.001,
        max_backoff_s=0.001,
    )
    made.initialize_state()
    yield made
    made.update_replicas([])
    for task in made._routing_tasks:
        task.cancel()


class Replica(FakeRunningReplica):
    """Ray's stand-in for a replica that may be silent."""

    def __init__(self, name: str, *models: str) -> None:
        super().__init__(name, model_ids=set(models))
        self.late_s = 0.0
        self.answers()

    @property
    def routing_stats(self) -> dict[str, Any]:
        """As the replica's `record_routing_stats` returned them."""
        return RoutingStats(late_s=self.late_s).to_wire()

    def answers(self) -> None:
        """Answer from now on, and whoever has asked."""
        self.set_queue_len_response(0)

    def is_stopped(self) -> None:
        """Answer nobody."""
        self._has_queue_len_response.clear()


def request(model: str) -> PendingRequest:
    """Return a request for a model as Ray makes one."""
    metadata = RequestMetadata("parent", "parent", multiplexed_model_id=model)
    return PendingRequest(args=[], kwargs={}, metadata=metadata)


async def choose(router: FleetRouter, model: str) -> str:
    """Have a request routed; return the name of its replica."""
    async with asyncio.timeout(5):
        chosen = await router._choose_replica_for_request(request(model))
    return chosen.replica_id.unique_id


def send(router: FleetRouter, to: Replica) -> Recipient:
    """Do what Ray does as it sends a call; return what its caller learns."""
    with following() as sent:
        router.on_send_request(to.replica_id)
    assert sent.to is not None
    return sent.to


async def test_a_silent_replica_is_left_out_until_it_answers(router: FleetRouter) -> None:
    """Its models go elsewhere at once; neither a broadcast nor a full queue brings it back."""
    holder, other = Replica("a", "m"), Replica("b")
    router.update_replicas([holder, other])
    assert await choose(router, "m") == "a"
    recipient = send(router, holder)
    assert recipient.id == "a"
    await recipient.ask()
    holder.is_stopped()
    recipient.is_silent()
    await asyncio.sleep(0)  # the router is told on its own loop
    assert await choose(router, "m") == "b"
    router.update_replicas([holder, other])
    assert await choose(router, "m") == "b"
    holder.answers()
    async with asyncio.timeout(5):
        while "a" in router._silent:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)
    assert await choose(router, "m") == "a"


async def test_a_silent_replica_that_goes_is_forgotten(router: FleetRouter) -> None:
    """With it the task that asks; and one that is silent after it has gone is none."""
    holder, other = Replica("a", "m"), Replica("b")
    router.update_replicas([holder, other])
    recipient = send(router, holder)
    holder.is_stopped()
    recipient.is_silent()
    await asyncio.sleep(0)
    assert "a" in router._silent
    router.update_replicas([other])
    assert "a" not in router._silent
    recipient.is_silent()
    await asyncio.sleep(0)
    assert "a" not in router._silent
    assert await choose(router, "m") == "b"


async def test_where_all_are_silent_requests_wait(router: FleetRouter) -> None:
    """The first that answers gets them."""
    only = Replica("a", "m")
    router.update_replicas([only])
    only.is_stopped()
    send(router, only).is_silent()
    await asyncio.sleep(0)
    waiting = asyncio.create_task(choose(router, "m"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    only.answers()
    assert await waiting == "a"


async def test_where_all_are_silent_models_stay_where_they_are(router: FleetRouter) -> None:
    """It is the network: the first that answers must not get all models to load."""
    replicas = [Replica(name, f"model-{name}") for name in "abc"]
    router.update_replicas(list(replicas))
    await asyncio.sleep(0)
    for replica in replicas:
        replica.is_stopped()
        send(router, replica).is_silent()
    await asyncio.sleep(0)
    models = [f"model-{name}" for name in "abc"]
    waiting = [asyncio.create_task(choose(router, model)) for model in models]
    for _ in range(5):
        await asyncio.sleep(0)
    for replica in replicas:
        replica.answers()
    assert await asyncio.gather(*waiting) == ["a", "b", "c"]
    assert not any(name in router._silent for name in "abc")


@pytest.mark.parametrize("how", ["died", "removed"])
async def test_who_is_left_over_is_not_hidden(router: FleetRouter, how: str) -> None:
    """The last that answered has gone: the silent one is no more silent than anybody."""
    holder, other = Replica("a", "m"), Replica("b")
    router.update_replicas([holder, other])
    holder.is_stopped()
    send(router, holder).is_silent()
    await asyncio.sleep(0)
    assert await choose(router, "m") == "b"
    if how == "died":
        router.on_replica_actor_died(other.replica_id)
    else:
        router.update_replicas([holder])
    assert "a" not in router._silent
    assert router._view.rank("m", lambda _: 0)[0] == ["a"]


async def test_everybody_can_be_asked(router: FleetRouter) -> None:
    """One that is late is there, and so is the one that the call went to."""
    holder, late = Replica("a", "m"), Replica("b")
    late.late_s = 8.0
    router.update_replicas([holder, late])
    asks = send(router, holder).everybody()
    assert sorted(asks) == ["a", "b"]
    assert [await ask() for ask in asks.values()] == [0, 0]


async def test_a_call_that_was_not_accepted_is_nowhere(router: FleetRouter) -> None:
    """It waits for a place again, and is not to be cancelled for the one that it did not get."""
    only = Replica("a", "m")
    router.update_replicas([only])
    asked = request("m")
    with following() as sent:
        chosen = await router._choose_replica_for_request(asked)
        router.on_send_request(chosen.replica_id)
        assert sent.to is not None
        only.set_queue_len_response(only.max_ongoing_requests)
        router.on_new_queue_len_info(chosen.replica_id, only.max_ongoing_requests)
        again = asyncio.create_task(router._choose_replica_for_request(asked, is_retry=True))
    await asyncio.sleep(0)
    assert not again.done()
    assert sent.to is None
    again.cancel()


async def test_what_an_absent_controller_said_last_is_not_true_for_ever(
    router: FleetRouter,
) -> None:
    """A step that goes on would be told of again."""
    now = 0.0
    router._late = Late(lambda: now)
    holder, other = Replica("a", "m"), Replica("b")
    holder.late_s = 4.0
    router.update_replicas([holder, other])
    assert await choose(router, "m") == "b"
    recipient = send(router, holder)
    with pytest.raises(StalledError):
        await recipient.ask()
    now = 10.5
    await recipient.ask()
    assert await choose(router, "m") == "a"


async def test_a_late_engine_gets_nothing_new_and_loses_what_it_has(router: FleetRouter) -> None:
    """The first as soon as it says so, the second a little later; when it gets on it is back."""
    holder, other = Replica("a", "m"), Replica("b")
    router.update_replicas([holder, other])
    recipient = send(router, holder)
    holder.late_s = 1.0
    router.update_replicas([holder, other])
    assert await choose(router, "m") == "b"
    await recipient.ask()
    holder.late_s = 4.0
    router.update_replicas([holder, other])
    with pytest.raises(StalledError):
        await recipient.ask()
    holder.late_s = 0.0
    router.update_replicas([holder, other])
    await recipient.ask()
    assert await choose(router, "m") == "a"


async def test_a_late_engine_is_used_where_there_is_no_other(router: FleetRouter) -> None:
    """Nor do its calls leave it: they would come back to it."""
    only, silent = Replica("a", "m"), Replica("b")
    only.late_s = 4.0
    router.update_replicas([only, silent])
    silent.is_stopped()
    send(router, silent).is_silent()
    await asyncio.sleep(0)
    assert await choose(router, "m") == "a"
    assert await choose(router, "other") == "a"
    await send(router, only).ask()


class Result:
    """What Ray makes of a call over its actor path: whoever waits no more does not cancel it."""

    def __init__(self) -> None:
        self.cancels = 0

    async def get_async(self) -> None:
        """Have no answer."""
        await asyncio.Event().wait()

    def cancel(self) -> None:
        """Take the cancellation."""
        self.cancels += 1


async def test_a_call_that_moves_is_cancelled_over_the_actor_path() -> None:
    """Where Serve was started without its router on the caller's loop."""
    result = Result()

    async def gone() -> None:
        raise ActorDiedError

    def call() -> DeploymentResponse[Any]:
        note(Recipient("a", gone, lambda: None, dict))
        made: concurrent.futures.Future[Any] = concurrent.futures.Future()
        made.set_result(result)
        metadata = RequestMetadata("parent", "parent")
        return DeploymentResponse(made, metadata, _is_router_running_in_separate_loop=True)

    with pytest.raises(ReplicaSilentError):
        await SilenceWatch(ask_after_s=0.001).wait(call)
    assert result.cancels == 1


def test_ray_tells_of_each_call_in_the_context_of_its_caller() -> None:
    """As soon as it is sent, and in a task that the caller's handle starts."""
    source = inspect.getsource(AsyncioRouter._route_and_send_request_once)
    sent = source.index("replica.try_send_request(")
    told = source.index("on_send_request(replica.replica_id)")
    assert sent < told < source.index("await result.get_rejection_response()")
    assert "create_task(" in inspect.getsource(CurrentLoopRouter.assign_request)
    assert "create_task" not in inspect.getsource(AsyncioRouter.route_and_send_request)
