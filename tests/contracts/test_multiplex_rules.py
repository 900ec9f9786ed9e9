"""The simulation's stock router against Ray's own: the same candidates, whatever came before."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.request_router import request_router
from ray.serve._private.request_router.common import RequestRoutingContext

from benchmarks.routing.routers import Pending
from benchmarks.routing.stock import StockRouting
from benchmarks.routing.workload import Request, SimModel
from serve_app.routing.fleet_view import ReplicaState
from serve_app.routing.stats import RoutingStats
from serve_app.types import ModelKey

MODELS = [
    SimModel(key, str(key), 1, 0.1, 0.1) for key in (ModelKey(f"m{i}", "1") for i in range(12))
]
REPLICAS = [f"r{i}" for i in range(6)]


class Both:
    """Ray's mixin and ours, told and asked the same."""

    def __init__(self, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self._rng = rng
        timeouts = SimpleNamespace(uniform=lambda low, high: (low + high) / 2)
        monkeypatch.setattr(request_router, "random", timeouts)
        monkeypatch.setattr(request_router, "time", SimpleNamespace(time=lambda: self.now))
        self._ray: Any = request_router.MultiplexMixin()  # type: ignore[no-untyped-call]
        self._ours = StockRouting(lambda: self.now, timeouts)  # type: ignore[arg-type]
        self._contexts: dict[Pending, RequestRoutingContext] = {}

    def update(self) -> None:
        """Deal models to replicas anew."""
        held = {id_: frozenset(self._some_ids()) for id_ in REPLICAS}
        replicas = [
            SimpleNamespace(replica_id=id_, multiplexed_model_ids=set(ids))
            for id_, ids in held.items()
        ]
        self._ray._replicas = {replica.replica_id: replica for replica in replicas}
        self._ray._replica_id_set = set(REPLICAS)
        self._ray._update_multiplexed_model_ids_with_replicas(replicas)
        self._ours.update([ReplicaState(id_, ids, RoutingStats(), 5) for id_, ids in held.items()])

    def ask(self, pending: Pending) -> tuple[set[str], set[str]]:
        """Return the candidates of Ray's and of ours."""
        context = self._contexts.setdefault(pending, RequestRoutingContext())
        metadata = SimpleNamespace(multiplexed_model_id=pending.request.model.id)
        request = SimpleNamespace(routing_context=context, metadata=metadata)
        theirs = set(self._ray.apply_multiplex_routing(request))
        return theirs, set(self._ours.candidates(pending))

    def _some_ids(self) -> list[str]:
        models = self._rng.sample(MODELS, self._rng.randrange(4))
        return [model.id for model in models]


@pytest.mark.parametrize("seed", range(5))
def test_candidates_are_those_of_ray(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders, else fewest models, once per model; after the timeout fewest, then everyone."""
    rng = random.Random(seed)  # noqa: S311 - a test is no secret
    both = Both(rng, monkeypatch)
    both.update()
    requests = [Request(number, 0.0, rng.choice(MODELS)) for number in range(40)]
    waiting = [Pending(request) for request in requests]
    sizes = set()
    for _ in range(1000):
        theirs, ours = both.ask(rng.choice(waiting))
        assert ours == theirs
        sizes.add(len(ours))
        both.now += rng.choice((0.0, 0.0, 0.01, 0.2))
        if rng.random() < 0.05:
            both.update()
        if rng.random() < 0.1:
            waiting[rng.randrange(len(waiting))] = Pending(rng.choice(requests))
    assert {0, 1, len(REPLICAS)} <= sizes  # nobody, some, and everyone
