"""Reads how long event loops kept others waiting, from a Prometheus histogram. Pure."""

import math
import re
from collections.abc import Mapping

METRIC = "serve_app_event_loop_lag_seconds"
Buckets = Mapping[float, float]
"""Upper bound in seconds -> how many observations so far were at most that."""

_BUCKET = re.compile(rf"^ray_{METRIC}_bucket\{{(?P<labels>.*)\}} (?P<count>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def read_buckets(text: str) -> dict[str, dict[float, float]]:
    """Return each deployment's buckets, summed over its replicas."""
    found: dict[str, dict[float, float]] = {}
    for match in _BUCKET.finditer(text):
        labels = dict(_LABEL.findall(match["labels"]))
        buckets = found.setdefault(labels.get("deployment", "?"), {})
        bound = float(labels["le"].replace("+Inf", "inf"))
        buckets[bound] = buckets.get(bound, 0.0) + float(match["count"])
    return found


def percentile_bound(before: Buckets, after: Buckets, percent: float) -> float:
    """Return the bucket bound that `percent` of the observations between two readings kept."""
    bounds = sorted(after)
    counted = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    if not counted or counted[-1] <= 0:
        return math.nan
    needed = counted[-1] * percent / 100
    return next(bound for bound, count in zip(bounds, counted, strict=True) if count >= needed)
