"""How many of the replicas that there are would do, seen from their reports. Pure.

The autoscaler decides; this only foresees it, so that copies are made before a replica goes.
"""

import math
from collections.abc import Mapping, Sequence

from serve_app.scaling.decision import (
    ReplicaLoad,
    ScalingRules,
    pinned_bytes,
    replicas_needed,
    union_bytes,
)
from serve_app.scaling.reports import BUDGET, HOT, PINNED
from serve_app.types import ReplicaReport

REQUESTS_PER_REPLICA = 16
"""As `target_ongoing_requests` in serve_config.yaml; ingress replicas do not know that."""


def replicas_needed_by(reports: Sequence[ReplicaReport]) -> int:
    """Return how many replicas hold the working set and the pins, and answer the requests."""
    loads = [_load(report.load) for report in reports]
    by_bytes = replicas_needed(
        [load.budget_bytes for load in loads],
        working_set_bytes=union_bytes(loads),
        pinned_bytes=pinned_bytes(loads),
        everywhere_bytes=max((load.everywhere_bytes for load in loads), default=0.0),
        margin=ScalingRules().margin,
    )
    requests = sum(model.leases for report in reports for model in report.models)
    copies = max((int(load.copies) for load in loads), default=0)
    return max(1, by_bytes, copies, math.ceil(requests / REQUESTS_PER_REPLICA))


def _load(told: Mapping[str, float]) -> ReplicaLoad:
    return ReplicaLoad(
        budget_bytes=told.get(BUDGET, 0.0),
        working_set_bytes=told.get("working_set_bytes", 0.0),
        hot=_named(told, HOT),
        pinned=_named(told, PINNED),
        pinned_bytes=told.get("pinned_bytes", 0.0),
        everywhere_bytes=told.get("everywhere_bytes", 0.0),
        copies=told.get("copies", 0.0),
    )


def _named(told: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): size for name, size in told.items() if name.startswith(prefix)
    }
