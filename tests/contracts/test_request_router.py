"""The request router against Ray's own machinery, without a cluster."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.request_router import RequestRouter
from ray.serve._private.test_utils import FakeRunningReplica
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RunningReplica

from serve_app.app import ROUTING
from serve_app.routing.router import FleetRouter
from serve_app.routing.stats import RoutingStats

LIMIT = 4
PRIVATE = (
    "_fulfill_next_pending_request",
    "_add_pending_request_to_indices",
    "_remove_pending_request_from_indices",
    "_record_queue_wait_time",
)


class Replica(FakeRunningReplica):
    """Ray's stand-in, with statistics."""

    def __init__(self, name: str, *models: str, stats: RoutingStats | None = None) -> None:
        super().__init__(name, model_ids=set(models), max_ongoing_requests=LIMIT)
        self.wire = {} if stats is None else stats.to_wire()
        self.set_queue_len_response(0)

    @property
    def routing_stats(self) -> dict[str, Any]:
        """As the replica's `record_routing_stats` returned them."""
        return self.wire


def tell(router: FleetRouter, *replicas: RunningReplica) -> None:
    """Broadcast the state of all replicas."""
    router.update_replicas(list(replicas))


def request(model: str = "", parent: str = "parent") -> PendingRequest:
    """Return a request; calls of one parent share its id, as Ray has it."""
    metadata = RequestMetadata(
        request_id=parent, internal_request_id=parent, multiplexed_model_id=model
    )
    return PendingRequest(args=[], kwargs={}, metadata=metadata)


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
    for task in made._routing_tasks:
        task.cancel()


async def choose(router: FleetRouter, asked: PendingRequest) -> str:
    """Have a request routed; return the name of its replica."""
    async with asyncio.timeout(5):
        replica = await router._choose_replica_for_request(asked)
    return replica.replica_id.unique_id


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something is so."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


def test_private_names_are_still_there() -> None:
    """Each name that the router overrides or calls exists in Ray's class."""
    for name in PRIVATE:
        assert callable(getattr(RequestRouter, name)), name
    assert FleetRouter._fulfill_next_pending_request is not (
        RequestRouter._fulfill_next_pending_request
    )


class SlowToTell(Replica):
    """Its cores are busy: how long its queue is takes it longer than Ray's 0.1 s to tell."""

    async def get_queue_len(self, *, deadline_s: float) -> int:
        """Tell after 0.2 s."""
        await asyncio.sleep(0.2)
        return 0


async def test_a_holder_that_is_slow_to_tell_is_waited_for(router: FleetRouter) -> None:
    """Nothing was heard of it lately: else the model would be loaded where something was."""
    holder, other = SlowToTell("a", "m"), Replica("b")
    tell(router, holder, other)
    router.on_new_queue_len_info(other.replica_id, 0)
    assert await choose(router, request("m")) == "a"


async def test_calls_of_one_parent_each_get_their_own_replica(router: FleetRouter) -> None:
    """A `gather` over models neither hangs nor mixes up who was chosen for what."""
    models = [f"m{index}" for index in range(8)]
    tell(router, *(Replica(f"r-{model}", model) for model in models))
    requests = [request(model) for model in models]
    chosen = await asyncio.gather(*(choose(router, asked) for asked in requests))
    assert chosen == [f"r-{model}" for model in models]


async def test_many_calls_more_than_routing_tasks(router: FleetRouter) -> None:
    """All are routed though only a few are looked at at once."""
    tell(router, Replica("a", "hot"), Replica("b"))
    chosen = await asyncio.gather(*(choose(router, request("hot")) for _ in range(40)))
    assert len(chosen) == 40
    assert set(chosen) <= {"a", "b"}


async def test_nothing_of_a_request_is_kept(router: FleetRouter) -> None:
    """After thousands of distinct models and parents no request is held on to."""
    tell(router, Replica("a"), Replica("b"))
    for index in range(2000):
        asked = request(f"m{index}", parent=f"p{index}")
        name = await choose(router, asked)
        router.on_request_completed(_id(name), asked.metadata.internal_request_id)
    del asked
    await until(lambda: not router._routing_tasks)
    gc.collect()
    assert not router._pending_requests_by_id
    assert not router._pending_requests_by_model_id
    assert not router._pending_requests_to_fulfill
    assert not router._request_of
    kept = [one for one in gc.get_objects() if type(one) is PendingRequest]
    assert len(kept) <= 1
    assert router._view._in_flight.at_replica("a") == 0
    assert router._view._in_flight.at_replica("b") == 0


async def test_a_full_fleet_waits_and_goes_on(router: FleetRouter) -> None:
    """Without room anywhere the router pauses between tries instead of spinning."""
    replicas = [Replica("a", "m"), Replica("b")]
    for replica in replicas:
        replica.set_queue_len_response(LIMIT)
    tell(router, *replicas)
    asked = request("m")
    choosing = asyncio.create_task(choose(router, asked))
    await until(lambda: router.num_routing_tasks_in_backoff == 1)
    assert asked.routing_context.should_backoff
    assert not choosing.done()
    replicas[1].set_queue_len_response(0)
    assert await choosing == "b"


async def test_a_full_holder_blocks_no_other_model(router: FleetRouter) -> None:
    """Requests for a model whose holder is full go on to the next replica, and so do others."""
    full, other = Replica("a", "hot"), Replica("b", "cold")
    full.set_queue_len_response(LIMIT)
    tell(router, full, other)
    router.on_new_queue_len_info(full.replica_id, LIMIT)
    assert await choose(router, request("hot")) == "b"
    assert full.num_get_queue_len_calls >= 1  # it was asked first: the cache may be out of date
    assert await choose(router, request("cold")) == "b"


async def test_a_cancelled_request_leaves_nothing_behind(router: FleetRouter) -> None:
    """Cancelled before its choice or at the same moment, it counts nowhere."""
    asked = request("m")
    choosing = asyncio.create_task(router._choose_replica_for_request(asked))
    await asyncio.sleep(0)
    choosing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await choosing
    tell(router, Replica("a", "m"))
    late = request("m")
    choosing = asyncio.create_task(router._choose_replica_for_request(late))
    await until(late.future.done)
    choosing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await choosing
    assert router._view._in_flight.at_replica("a") == 0


async def test_a_dead_replica_is_dropped_at_once(router: FleetRouter) -> None:
    """No broadcast is waited for."""
    holder, other = Replica("a", "m"), Replica("b")
    tell(router, holder, other)
    assert await choose(router, request("m")) == "a"
    router.on_replica_actor_died(holder.replica_id)
    assert await choose(router, request("m")) == "b"
    assert "a" not in router._known
    router.on_request_completed(holder.replica_id, "parent")  # too late to matter


async def test_a_choice_without_a_request_takes_anybody(router: FleetRouter) -> None:
    """Ray's interface allows that, 2.60 never does it."""
    one, other = Replica("a", "m"), Replica("b")
    tell(router, one, other)
    assert await router.choose_replicas([one, other]) == [[one, other]]


async def test_an_answer_tells_what_others_have_sent(router: FleetRouter) -> None:
    """Ray tells of the queue and then of the request, which is let go of."""
    only = Replica("a", "m")
    tell(router, only)
    asked = request("m")
    asked.args = [b"a picture"]
    chosen = await router._choose_replica_for_request(asked)
    router.on_send_request(chosen.replica_id)
    router.on_new_queue_len_info(chosen.replica_id, 9)
    router.on_request_routed(asked, chosen.replica_id, None)
    assert router._view._in_flight.others_at("a", time.monotonic()) == 8
    assert asked.args == []
    assert not router._sent


async def test_statistics_reach_the_view(router: FleetRouter) -> None:
    """A model that takes more than one replica has to give gets a second place."""
    stats = RoutingStats(budget_bytes=100, request_s=0.1, load_s=0.1, busy={"hot": 0.95})
    first, second = Replica("a", "hot", stats=stats), Replica("b", stats=RoutingStats(100, 100))
    tell(router, first, second)
    assert router._view._demand.copies("hot", time.monotonic()) == 2
    read = router._stats["a"]
    tell(router, first, second)
    assert router._stats["a"] is read  # unchanged statistics are not read again


async def test_settings_come_from_the_configuration(router: FleetRouter) -> None:
    """Each of request_router_kwargs is a field of RoutingConfig; others are refused."""
    router.initialize_state(places=3)
    with pytest.raises(TypeError, match="plces"):
        router.initialize_state(plces=3)


def _id(name: str) -> ReplicaID:
    return Replica(name).replica_id


def test_ray_can_send_the_class_to_other_processes() -> None:
    """Ray pickles the module by value; what comes back is a router that works alike."""
    pickled = RequestRouterConfig(**ROUTING).get_serialized_request_router_cls()
    assert pickled is not None
    restored: Any = cloudpickle.loads(pickled)
    assert restored.__name__ == "FleetRouter"
    assert issubclass(restored, RequestRouter)
