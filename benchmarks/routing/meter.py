"""What a replica of the simulation tells routers of itself, measured as it works."""

import math

from benchmarks.routing.events import Timeline
from serve_app.routing.stats import hottest, rounded

_WINDOW_S = 3.0
_WEIGHT = 0.1


class Meter:
    """Running means of requests and loads, and the share of the engine that each model takes."""

    def __init__(self, timeline: Timeline) -> None:
        """Begin with nothing known."""
        self._timeline = timeline
        self._request_s = 0.0
        self._load_s = 0.0
        self._work: dict[str, float] = {}
        self._aged_at = 0.0

    @property
    def request_s(self) -> float:
        """Seconds that one request takes lately, rounded."""
        return rounded(self._request_s)

    @property
    def load_s(self) -> float:
        """Seconds that a load from prepared weights takes lately, rounded."""
        return rounded(self._load_s)

    def served(self, model: str, seconds: float) -> None:
        """Count one request."""
        self._request_s = _mean(self._request_s, seconds)
        self._age()
        self._work[model] = self._work.get(model, 0.0) + seconds

    def loaded(self, seconds: float) -> None:
        """Count one load from prepared weights."""
        self._load_s = _mean(self._load_s, seconds)

    def busy(self) -> dict[str, float]:
        """Return the share of the engine that each hot model takes lately."""
        self._age()
        self._work = {id_: work for id_, work in self._work.items() if work > 1e-3 * _WINDOW_S}
        return hottest({id_: work / _WINDOW_S for id_, work in self._work.items()})

    def _age(self) -> None:
        now = self._timeline.now
        fading = math.exp(-(now - self._aged_at) / _WINDOW_S)
        self._aged_at = now
        self._work = {id_: work * fading for id_, work in self._work.items()}


def _mean(before: float, value: float) -> float:
    return value if before == 0 else before + _WEIGHT * (value - before)
