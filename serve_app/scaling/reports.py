"""What replicas tell the autoscaler, as Ray carries it: numbers by name. Pure.

Ray calls `record_autoscaling_stats()` of each replica and hands the policy, for each name and
replica, the values of the last seconds with their times. The models asked for most and the largest
pinned ones go by names of their own, `hot:<key>` and `pinned:<key>`, so that the policy recognises
copies of a model on several replicas.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.scaling.decision import ReplicaLoad
from serve_app.scaling.working_set import WorkingSetState
from serve_app.types import Copies

BUDGET = "budget_bytes"
HOT, PINNED = "hot:", "pinned:"
MAX_PINNED = 32
"""Pinned models that are told by name."""
_SAME_TIME_S = 1e-3
_PLAIN = (
    "working_set_bytes",
    "pinned_bytes",
    "everywhere_bytes",
    "copies",
    "asked",
    "requests_per_s",
    "regrets_per_s",
)


@dataclass(frozen=True, slots=True)
class PinnedModel:
    """A pinned model in memory; `copies`: on how many replicas it is wanted, None: on all."""

    key: str
    bytes: int
    copies: Copies


def to_report(
    state: WorkingSetState, budget_bytes: int, pinned: Sequence[PinnedModel]
) -> dict[str, float]:
    """Return what a replica tells; see ReplicaLoad for what each number means."""
    some = [(one.bytes * one.copies, one.key) for one in pinned if one.copies is not None]
    named = heapq.nlargest(MAX_PINNED, some)
    # The rest is told as what is here alone; all replicas together then tell all its copies.
    told = {key for _, key in named}
    rest = sum(one.bytes for one in pinned if one.copies is not None and one.key not in told)
    return {
        BUDGET: float(budget_bytes),
        "working_set_bytes": float(state.bytes),
        "pinned_bytes": float(rest),
        "everywhere_bytes": float(sum(one.bytes for one in pinned if one.copies is None)),
        "copies": float(max((one.copies for one in pinned if one.copies is not None), default=0)),
        "asked": float(state.asked),
        "requests_per_s": round(state.requests_per_s, 4),
        "regrets_per_s": round(state.regrets_per_s, 4),
        **{f"{HOT}{key}": float(size) for key, size in state.hot.items()},
        **{f"{PINNED}{key}": float(size) for size, key in named},
    }


def read_reports(raw: object) -> tuple[ReplicaLoad, ...]:
    """Return the newest report of each replica; whatever is missing or odd is left out.

    raw: `AutoscalingContext.raw_metrics`: name -> replica -> values with `timestamp` and `value`

    A replica whose budget is not known is left out altogether. A model told by name counts only if
    its value is as new as the budget's: Ray keeps a name for a while after the last value.
    """
    if not isinstance(raw, Mapping):
        return ()
    told: dict[object, dict[str, tuple[float, float]]] = {}
    for name, by_replica in raw.items():
        if isinstance(name, str) and isinstance(by_replica, Mapping):
            for replica, series in by_replica.items():
                if (newest := _newest(series)) is not None:
                    told.setdefault(replica, {})[name] = newest
    return tuple(_load(one) for one in told.values() if BUDGET in one)


def _load(told: Mapping[str, tuple[float, float]]) -> ReplicaLoad:
    reported_at, budget = told[BUDGET]
    named: dict[str, dict[str, float]] = {HOT: {}, PINNED: {}}
    for name, (at, value) in told.items():
        for prefix, found in named.items():
            if name.startswith(prefix) and at >= reported_at - _SAME_TIME_S:
                found[name.removeprefix(prefix)] = value
    plain = {name: told[name][1] for name in _PLAIN if name in told}
    return ReplicaLoad(budget_bytes=budget, hot=named[HOT], pinned=named[PINNED], **plain)


def _newest(series: Any) -> tuple[float, float] | None:  # noqa: ANN401 - from outside
    """Return the time and value of the last entry, None for a value that makes no sense."""
    try:
        last = series[-1]
        at, value = float(last.timestamp), last.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return (at, float(value)) if math.isfinite(value) and value >= 0 else None
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        return None
