"""What a replica is asked for again and again, in bytes, and how often it lacks that. Pure."""

import heapq
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

MAX_KEYS = 16_384
"""Models that are followed at the same time; beyond them the longest unasked is forgotten."""
MAX_HOT = 32
"""Models that are told by name, so that their copies on other replicas can be recognised."""
_RATE_SHARE = 4
"""Rates are averaged over this part of the window: fast enough to act on, slow enough to trust."""


@dataclass(frozen=True, slots=True)
class WorkingSetState:
    """The working set of one replica at one moment.

    bytes: of the distinct models that were asked for at least twice within the window
    models: how many these are
    asked: models that were asked for at all within the window
    hot: the bytes of those asked for most, by key
    requests_per_s: of late
    regrets_per_s: requests of late whose model had been evicted within the window
    """

    bytes: int = 0
    models: int = 0
    asked: int = 0
    hot: Mapping[str, int] = field(default_factory=dict)
    requests_per_s: float = 0.0
    regrets_per_s: float = 0.0


class DecayingRate:
    """Events per second, with a weight that falls by e in `tau_s` seconds; constant memory."""

    def __init__(self, tau_s: float) -> None:
        self._tau_s = tau_s
        self._per_s = 0.0
        self._since = -math.inf

    def add(self, now: float) -> None:
        """Count one event."""
        self._per_s = self.per_s(now) + 1 / self._tau_s
        self._since = now

    def per_s(self, now: float) -> float:
        """Return the rate."""
        return self._per_s * math.exp(-max(0.0, now - self._since) / self._tau_s)


@dataclass(slots=True)
class _Record:
    """One model: when it was asked for last and before that, and when it was evicted."""

    last: float = -math.inf
    previous: float = -math.inf
    evicted: float = -math.inf
    weight: float = 0.0  # requests, the older the less
    bytes: int = 0


class WorkingSet:
    """Follows requests, sizes and evictions of models; bounded, whatever the number of ids.

    A model belongs to the working set when it was asked for at least twice within the window: what
    is asked for once and never again is no reason for a larger fleet.
    """

    def __init__(self, window_s: float, max_keys: int = MAX_KEYS) -> None:
        """Remember requests for `window_s` seconds, of at most `max_keys` models."""
        if window_s <= 0:
            raise ValueError(f"window_s must be more than 0, not {window_s}")
        self._window_s = window_s
        self._max_keys = max_keys
        self._records: OrderedDict[str, _Record] = OrderedDict()  # the longest unasked first
        self._requests = DecayingRate(window_s / _RATE_SHARE)
        self._regrets = DecayingRate(window_s / _RATE_SHARE)

    @property
    def window_s(self) -> float:
        """How long a request counts, in seconds."""
        return self._window_s

    def __len__(self) -> int:
        return len(self._records)

    def asked(self, key: str, now: float) -> bool:
        """Count a request; return whether it is a regret: its model was evicted not long ago."""
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = _Record()
        age = now - record.last
        record.weight = record.weight * math.exp(-max(0.0, age) / self._window_s) + 1
        record.previous, record.last = record.last, now
        self._records.move_to_end(key)
        self._requests.add(now)
        regretted = now - record.evicted <= self._window_s
        record.evicted = -math.inf  # one eviction is regretted once
        if regretted:
            self._regrets.add(now)
        self._forget(now)
        return regretted

    def sized(self, key: str, size: int) -> None:
        """Learn the bytes of a model; of one that nobody asked for lately, nothing is kept."""
        record = self._records.get(key)
        if record is not None and size > 0:
            record.bytes = size

    def evicted(self, key: str, now: float) -> None:
        """Remember that a model had to leave for want of room."""
        record = self._records.get(key)
        if record is not None:
            record.evicted = now

    def state(self, now: float, without: Collection[str] = ()) -> WorkingSetState:
        """Return the working set, leaving out the models in `without` (pinned ones)."""
        self._forget(now)
        since = now - self._window_s
        members = [
            (record.weight, key, record.bytes)
            for key, record in self._records.items()
            if record.previous >= since and key not in without
        ]
        return WorkingSetState(
            bytes=sum(size for _, _, size in members),
            models=len(members),
            asked=len(self._records),
            hot={key: size for _, key, size in heapq.nlargest(MAX_HOT, members) if size},
            requests_per_s=self._requests.per_s(now),
            regrets_per_s=self._regrets.per_s(now),
        )

    def _forget(self, now: float) -> None:
        """Drop what was not asked for within the window, and what is too many."""
        since = now - self._window_s
        while self._records:
            record = next(iter(self._records.values()))
            if record.last >= since and len(self._records) <= self._max_keys:
                return
            self._records.popitem(last=False)
