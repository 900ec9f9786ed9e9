"""Consistent hashing: every router finds the same replicas for a model, without talking.

A replica that comes or goes moves only its own share of the models.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import lru_cache

from serve_app.hashing import hash64

_POINTS = 128
"""Points of the lightest replica: its share of the models is then right within about a tenth."""
_MOST_POINTS = 1024
"""Points of the heaviest one: a ring of 64 replicas is still built in a tenth of a second."""


class Ring:
    """Replica ids on a circle, with points in proportion to their weights."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        """Place each id; one of weight 0 (unknown) counts as the lightest that is known."""
        lightest = min((weight for weight in weights.values() if weight > 0), default=1)
        points = sorted(
            (point, id_)
            for id_, weight in weights.items()
            for point in _points_of(id_, _point_count(weight, lightest))
        )
        self._hashes = [point for point, _ in points]
        self._owners = [id_ for _, id_ in points]

    def walk(self, key: str) -> Iterator[str]:
        """Yield every id once, beginning with the home of `key`."""
        owners, seen = self._owners, set()
        start = bisect_right(self._hashes, hash64(key))
        for turn in range(len(owners)):
            id_ = owners[(start + turn) % len(owners)]
            if id_ not in seen:
                seen.add(id_)
                yield id_


@lru_cache(maxsize=256)
def _points_of(id_: str, count: int) -> tuple[int, ...]:
    """Return the points of one id; a replica that comes or goes leaves those of others."""
    return tuple(hash64(f"{id_}#{turn}") for turn in range(count))


def _point_count(weight: int, lightest: int) -> int:
    return min(_MOST_POINTS, max(_POINTS, round(_POINTS * weight / lightest)))
