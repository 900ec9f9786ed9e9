"""Copies come with load, go after calm, and never flutter."""

from serve_app.routing.demand import Demand
from serve_app.routing.scoring import RoutingConfig

CONFIG = RoutingConfig(busy_per_copy=0.6, calm_share=0.7, calm_s=5.0, step_s=0.5)


def test_a_model_has_one_copy_until_its_load_asks_for_more() -> None:
    """0.6 of a replica is what one copy takes; so many more copies as that goes into its load."""
    demand = Demand(CONFIG)
    demand.observe({"calm": 0.6, "warm": 0.61, "hot": 2.4}, 64, 0.0)
    assert [demand.copies(model, 0.0) for model in ("calm", "warm", "hot", "rare")] == [1, 2, 4, 1]


def test_never_more_copies_than_replicas() -> None:
    """Not even as replicas go."""
    demand = Demand(CONFIG)
    demand.observe({"hot": 9.0}, 3, 0.0)
    assert demand.copies("hot", 0.0) == 3
    demand.observe({"hot": 9.0}, 2, 0.0)
    assert demand.copies("hot", 0.0) == 2
    demand.observe({"hot": 9.0}, 1, 0.0)
    assert demand.copies("hot", 0.0) == 1


def test_copies_go_one_by_one_after_a_calm_while() -> None:
    """A load that comes back in between starts the while anew."""
    demand = Demand(CONFIG)
    demand.observe({"hot": 1.7}, 64, 0.0)
    assert demand.copies("hot", 0.0) == 3
    for now, share, copies in [
        (1.0, 0.1, 3),
        (5.9, 0.1, 3),
        (6.0, 0.1, 2),
        (10.0, 0.5, 2),  # not calm enough for one
        (11.5, 0.1, 2),
        (16.4, 0.1, 2),
        (16.5, 0.1, 1),
    ]:
        demand.observe({"hot": share}, 64, now)
        assert demand.copies("hot", now) == copies, now


def test_a_steady_load_at_the_brink_does_not_flutter() -> None:
    """Between the load that brings a copy and the one that takes it nothing happens."""
    demand = Demand(CONFIG)
    copies = []
    for step in range(200):
        demand.observe({"hot": 0.62 if step % 2 else 0.58}, 64, float(step))
        copies.append(demand.copies("hot", float(step)))
    assert copies == [1] + [2] * 199


def test_calm_needs_no_news() -> None:
    """Where nothing changes nothing is broadcast, and copies go all the same."""
    demand = Demand(CONFIG)
    demand.observe({"hot": 1.7}, 64, 0.0)
    demand.observe({"hot": 0.5}, 64, 1.0)
    assert [demand.copies("hot", now) for now in (5.9, 6.0, 60.0)] == [3, 2, 2]
    demand.observe({}, 64, 61.0)
    assert [demand.copies("hot", now) for now in (65.9, 66.0)] == [2, 1]


def test_a_backlog_raises_step_by_step() -> None:
    """By half each time, and copies get time to be of use before more are asked for."""
    demand = Demand(CONFIG)
    steps = [demand.pressed("hot", 64, now) for now in (0.0, 0.4, 0.5, 0.9, 1.0)]
    assert steps == [2, 2, 3, 3, 5]
    assert Demand(CONFIG).pressed("hot", 1, 0.0) == 1


def test_only_hot_models_are_remembered() -> None:
    """10,000 models that were hot once leave nothing behind."""
    demand = Demand(CONFIG)
    for index in range(10_000):
        demand.pressed(f"m{index}", 64, 0.0)
    demand.observe({}, 64, 0.0)
    demand.observe({}, 64, 5.0)
    assert not demand._wanted
