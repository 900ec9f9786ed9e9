"""Whatever happens: rankings are sound, and nothing grows."""

import random
from collections.abc import Iterable, Mapping, Sized

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.routing.fleet_view import FleetView
from tests.unit.routing.fleet import GIB, LIMIT, Fleet, stats


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_a_ranking_is_sound_whatever_happens(seed: int, count: int) -> None:
    """It names replicas that there are, each once before the last rank.

    The last one is cut short only where all are full.
    """
    chance = random.Random(seed)  # noqa: S311
    ids = [f"r{index}" for index in range(count)]
    models = [f"m{index}" for index in range(6)]
    fleet = Fleet(*ids)
    for _ in range(60):
        fleet.clock.now += chance.choice([0.0, 0.01, 1.0, 10.0])
        match chance.randrange(6):
            case 0:
                id_ = chance.choice(ids)
                held = set(chance.sample(models, chance.randrange(4)))
                fleet.models[id_] = held
                fleet.stats[id_] = stats(
                    loading=frozenset(chance.sample(sorted(held), len(held) // 2)),
                    busy={model: chance.random() for model in held},
                    free_bytes=chance.randrange(GIB),
                )
            case 1:
                fleet.models.pop(chance.choice(ids), None)
            case 2:
                fleet.view.gone(chance.choice(ids))
            case 3:
                fleet.complete_all()
            case _:
                fleet.queues = {id_: chance.randrange(LIMIT + 2) for id_ in ids}
        if chance.random() < 0.7:
            fleet.tell()
        present = set(fleet.view._replicas)
        for model in models:
            ranked = fleet.rank(model)
            assert bool(ranked) == bool(present)
            for rank in ranked[-1:]:
                assert rank
                assert len(rank) == len(set(rank))
                assert present.issuperset(rank)
                if any(fleet.queues.get(id_, 0) < LIMIT for id_ in present):
                    assert set(rank) == present
            named = [id_ for rank in ranked[:-1] for id_ in rank]
            assert len(named) == len(set(named)) <= 3 + count
            assert present.issuperset(named)
            if ranked:
                fleet.serial += 1
                fleet.view.sent(model, chance.choice(ranked[0]), str(fleet.serial))


def test_ten_thousand_models_leave_nothing_behind() -> None:
    """Each asked for once, by a router that is told of nothing for long."""
    fleet = Fleet("a", "b", "c")
    sizes = []
    for index in range(20_000):
        fleet.clock.now += 0.01
        fleet.send(f"m{index}")
        fleet.view.completed(str(fleet.serial))
        sizes.append(_size(fleet.view))
    assert max(sizes[10_000:]) <= max(sizes[:10_000])
    assert max(sizes) < 5_000


def _size(view: FleetView) -> int:
    """Return how much a view keeps, whatever it is called."""
    return len(view._in_flight) + sum(map(len, _containers(vars(view))))


def _containers(fields: Mapping[str, object]) -> Iterable[Sized]:
    return [value for value in fields.values() if isinstance(value, dict | set | list)]
