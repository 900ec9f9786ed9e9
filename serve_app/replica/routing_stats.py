"""What a replica measures for the routers, as it answers; see serve_app.routing.stats."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence, Set
from typing import Protocol

from serve_app.routing.idfilter import IdFilter
from serve_app.routing.stats import (
    MAX_PARKED,
    RoutingStats,
    hottest,
    rounded,
    rounded_free_bytes,
    rounded_late_s,
)
from serve_app.types import ModelKey, PredictResult, ResidentModel

_WINDOW_S = 3.0
"""What a model took counts for about so long."""
_WEIGHT = 0.1  # of the newest request or load
_FORGOTTEN_S = 1e-3
_BATCHES = 8
_FILTER_S = 5.0
"""Time between two filters while models are being prepared: 10,000 ids take tens of ms."""


class PreparedModels(Protocol):
    """Knows what is prepared on this node: `serve_app.loading.preparer.Preparer`."""

    @property
    def settled(self) -> int:
        """Grows with every file that is prepared; 0 as long as none is."""

    def prepared(self) -> Collection[ModelKey] | None:
        """Return the versions whose files are prepared, None if none ever are."""


class RoutingMeter:
    """Running means over what is answered. Belongs to one event loop."""

    def __init__(
        self,
        streams: int,
        prepared: PreparedModels,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`streams`: passes that run at once, so many seconds of work does a second do."""
        self._streams = streams
        self._prepared = prepared
        self._clock = clock
        self._request_s = 0.0
        self._load_s = 0.0
        self._last_load_ms: float | None = None
        self._work_s: dict[str, float] = {}
        self._aged_at = clock()
        self._batches: deque[float] = deque(maxlen=_BATCHES)
        self._filter: IdFilter | None = None
        self._filter_of = -1
        self._filter_at = -math.inf

    def answered(self, result: PredictResult) -> None:
        """Count one request, and the load that it waited for."""
        device_s = self._device_s(result) / self._streams
        self._request_s = _mean(self._request_s, device_s)
        self._age()
        key = str(result.key)
        self._work_s[key] = self._work_s.get(key, 0.0) + device_s
        # Everyone who waited for a load reports it.
        if result.load_ms is not None and result.load_ms != self._last_load_ms:
            self._last_load_ms = result.load_ms
            if self._filter is None or key in self._filter:
                self._load_s = _mean(self._load_s, result.load_ms / 1000)

    async def refresh(self) -> None:
        """Learn what has been prepared since, now and then; in a thread, as it takes a while."""
        now, settled = self._clock(), self._prepared.settled
        if settled != self._filter_of and now - self._filter_at >= _FILTER_S:
            keys = self._prepared.prepared()
            self._filter = None if keys is None else await asyncio.to_thread(_filter_of, keys)
            self._filter_of, self._filter_at = settled, now

    def stats(
        self,
        *,
        budget_bytes: int,
        used_bytes: int,
        max_models: int | None,
        advertised: Set[str],
        models: Sequence[ResidentModel],
        parked: Sequence[ModelKey],
        late_s: float = 0.0,
    ) -> RoutingStats:
        """Return what routers should know now.

        Args:
            budget_bytes: what models may hold
            used_bytes: what they do
            max_models: how many there may be
            advertised: what routers are told to be here
            models: what is
            parked: what is one copy in host memory away, the last used last
            late_s: for how long a step of the engine has taken much longer than expected
        """
        self._age()
        resident = {model.key: model.bytes for model in models if model.state == "resident"}
        left = [id_ for id_ in map(str, parked) if id_ not in advertised]
        mean_bytes = sum(resident.values()) / max(1, len(resident))
        return RoutingStats(
            budget_bytes=budget_bytes,
            free_bytes=rounded_free_bytes(budget_bytes, used_bytes),
            room_bytes=_room_bytes(budget_bytes, used_bytes, max_models, models),
            model_bytes=int(rounded(mean_bytes)),
            request_s=rounded(self._request_s),
            load_s=rounded(self._load_s),
            loading=frozenset(advertised - resident.keys()),
            parked=frozenset(left[-MAX_PARKED:]),
            prepared=self._filter,
            late_s=rounded_late_s(late_s),
            busy=hottest({key: work / _WINDOW_S for key, work in self._work_s.items()}),
        )

    def _device_s(self, result: PredictResult) -> float:
        """Return the stream's seconds that a request's pictures took.

        Each picture of a batch has the batch's time. Times are told apart to the nanosecond, so
        pictures with the same one went through together, and only the first is charged.
        """
        seconds = 0.0
        for image in result.images:
            inference_ms = image.speed_ms.get("inference", 0.0)
            seconds += image.speed_ms.get("postprocess", 0.0) / 1000
            if inference_ms not in self._batches:
                self._batches.append(inference_ms)
                seconds += inference_ms / 1000
        return seconds

    def _age(self) -> None:
        now = self._clock()
        fading = math.exp((self._aged_at - now) / _WINDOW_S)
        self._aged_at = now
        faded = {key: work * fading for key, work in self._work_s.items()}
        self._work_s = {key: work for key, work in faded.items() if work > _FORGOTTEN_S}


def _room_bytes(
    budget_bytes: int, used_bytes: int, max_models: int | None, models: Sequence[ResidentModel]
) -> int:
    """Return what could be free if all models went that are not pinned."""
    if max_models is not None and sum(model.pinned for model in models) >= max_models:
        return 0
    # What models share counts as pinned: less room than there is costs a model its first place
    # only, more room than there is costs it the answer.
    movable = sum(model.bytes for model in models if not model.pinned)
    return rounded_free_bytes(budget_bytes, used_bytes - movable)


def _filter_of(keys: Collection[ModelKey]) -> IdFilter:
    return IdFilter.of([str(key) for key in keys])


def _mean(before: float, value: float) -> float:
    return value if before == 0.0 else before + _WEIGHT * (value - before)
