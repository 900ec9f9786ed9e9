"""Silent replicas: what the request router takes from Ray to know them and to leave them alone."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.router import AsyncioRouter, CurrentLoopRouter
from ray.serve._private.test_utils import FakeRunningReplica

from serve_app.routing.recipient import Recipient, StalledError, following
from serve_app.routing.router import FleetRouter
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


async def choose(router: FleetRouter, model: str) -> str:
    """Have a request routed; return the name of its replica."""
    metadata = RequestMetadata("parent", "parent", multiplexed_model_id=model)
    asked = PendingRequest(args=[], kwargs={}, metadata=metadata)
    async with asyncio.timeout(5):
        chosen = await router._choose_replica_for_request(asked)
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


async def test_a_late_engine_gets_nothing_new_and_loses_what_it_has(router: FleetRouter) -> None:
    """The first as soon as it says so, the second a little later; when it gets on it is back."""
    holder, other = Replica("a", "m"), Replica("b")
    router.update_replicas([holder, other])
    recipient = send(router, holder)
    holder.late_s = 1.0
    router.update_replicas([holder, other])
    assert await choose(router, "m") == "b"
    await recipient.ask()
    holder.late_s = 2.0
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


def test_ray_tells_of_each_call_in_the_context_of_its_caller() -> None:
    """As soon as it is sent, and in a task that the caller's handle starts."""
    source = inspect.getsource(AsyncioRouter._route_and_send_request_once)
    sent = source.index("replica.try_send_request(")
    told = source.index("on_send_request(replica.replica_id)")
    assert sent < told < source.index("await result.get_rejection_response()")
    assert "create_task(" in inspect.getsource(CurrentLoopRouter.assign_request)
    assert "create_task" not in inspect.getsource(AsyncioRouter.route_and_send_request)
