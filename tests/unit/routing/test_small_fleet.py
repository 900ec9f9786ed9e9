"""Three replicas that together have room for every model: each is loaded once, and that is all."""

from collections.abc import Iterator
from random import Random

import pytest

from benchmarks.routing.simulator import OURS, Simulation
from benchmarks.routing.workload import Cell, Request, Scale, SimModel, Trace
from benchmarks.workloads import Workload, popularity
from serve_app.routing.fleet_view import ReplicaState
from serve_app.routing.stats import RoutingStats
from serve_app.types import ModelKey

MODELS, PLACES, REPLICAS = 12, 6, 3
SIZE, LOAD_S, SERVICE_S = 6_000_000, 0.06, 0.04
WARM_S = 8.0
"""By then each model was asked for once, one after the other."""
RATE, SECONDS = 20.0, 40.0


class SmallFleet(Simulation):
    """Notes when something is loaded once all models were."""

    def __init__(self, seed: int) -> None:
        """Popularities by Zipf, arrivals by Poisson."""
        # Another name is another place on the ring.
        fleet = [
            SimModel(ModelKey(f"s{seed}-{i}", "1"), f"s{seed}-{i}@1", SIZE, LOAD_S, SERVICE_S)
            for i in range(MODELS)
        ]
        requests = list(_requests(fleet, Random(seed)))  # noqa: S311
        # A quarter of a place is left over: too little for another model.
        room = (PLACES + 0.25) * REPLICAS / MODELS
        cell = Cell(Workload(name="small", models=MODELS), room, 0.27)
        scale = Scale(REPLICAS, REPLICAS, 1, MODELS, len(requests))
        super().__init__(OURS, cell, scale, Trace(fleet, requests, MODELS), seed)
        for replica in self.replicas.values():
            replica.node.prepared.update(model.id for model in fleet)
        self.late: list[float] = []

    def _missed(self, model: SimModel) -> None:
        super()._missed(model)
        if self._timeline.now > WARM_S:
            self.late.append(self._timeline.now)

    def forget_at(self, time_s: float) -> None:
        """Have the controller start again: it knows replicas, but nothing that they told."""
        self._timeline.at(time_s, self._forget)

    def _forget(self) -> None:
        controller = self._controller
        for id_, known in controller._known.items():
            blank = ReplicaState(id_, frozenset(), RoutingStats(), known.max_ongoing)
            controller._known[id_] = blank
        controller._news = True


def _requests(fleet: list[SimModel], chance: Random) -> Iterator[Request]:
    for number, model in enumerate(fleet):
        yield Request(number, 0.5 + 0.5 * number, model)
    at_s, weights = WARM_S, list(popularity(MODELS, 0.8))
    for number in range(MODELS, MODELS + int(RATE * SECONDS)):
        at_s += chance.expovariate(RATE)
        yield Request(number, at_s, chance.choices(fleet, weights)[0])


@pytest.mark.parametrize("seed", range(6))
def test_what_fits_is_not_loaded_again(seed: int) -> None:
    """No copy evicts another's only one; a short queue calls for one copy more at most."""
    fleet = SmallFleet(seed)
    fleet.run()
    assert len(fleet.late) <= 1


@pytest.mark.parametrize("seed", range(6))
def test_a_controller_that_starts_again_makes_no_load(seed: int) -> None:
    """Replicas tell it of their ids with their next change; until then routers remember."""
    fleet = SmallFleet(seed)
    fleet.forget_at(20.0)
    fleet.run()
    assert [at for at in fleet.late if at >= 20.0] == []
