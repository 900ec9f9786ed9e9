"""Which replica takes which model, so that all who ask find the same answer. Pure.

Rendezvous hashing: each pair of model and replica has a weight, and a model goes to the replicas of
the greatest. One replica more or less moves nothing but the models that it takes or leaves.
"""

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

from serve_app.hashing import rendezvous
from serve_app.types import Copies

K = TypeVar("K", bound=Hashable)


def share_of(wanted: Mapping[K, Copies], rank: int, world_size: int) -> tuple[K, ...]:
    """Return the models that fall to the replica of `rank`, in the order of `wanted`.

    Each goes to the replicas of the greatest weights that do not have their part yet, so that no
    replica has many more than another.

    Args:
        wanted: the copies of each model
        rank: the replica's number, from 0
        world_size: how many replicas there are; a `rank` beyond them counts as one more, since
            Ray does not tell what its autoscaler added
    """
    count = max(world_size, rank + 1)
    some = sum(min(copies, count) for copies in wanted.values() if copies is not None)
    fair = math.ceil(some / count)
    taken = [0] * count
    mine: list[K] = []
    for key, copies in wanted.items():
        if copies is None:
            mine.append(key)
            continue
        best = sorted(
            range(count), key=lambda place: (taken[place] >= fair, -rendezvous(key, str(place)))
        )
        for place in best[:copies]:
            taken[place] += 1
        if rank in best[:copies]:
            mine.append(key)
    return tuple(mine)


def pins_of(wanted: Mapping[K, Copies], rank: int, world_size: int) -> tuple[K, ...]:
    """Return the pinned models that fall to the replica of `rank`, in the order of `wanted`.

    One beyond `world_size` was added by the autoscaler to replicas that have their pins already:
    it takes what is wanted everywhere, and of the rest nothing unless it is told.
    """
    if rank < world_size:
        return share_of(wanted, rank, world_size)
    return tuple(key for key, copies in wanted.items() if copies is None)
