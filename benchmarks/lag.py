"""Reads how long event loops kept others waiting, from Ray Serve's own histogram. Pure."""

import math
import re
from collections.abc import Mapping

INTERVAL = {"RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S": "0.02"}
"""What a server is started with, so that Ray looks at its loops often enough; 5 s by default."""

Buckets = Mapping[float, float]
"""Upper bound in seconds -> how many observations so far were at most that."""

_BUCKET = re.compile(
    r"^ray_serve_event_loop_scheduling_latency_ms_bucket\{(?P<labels>.*)\} (?P<count>\S+)$",
    re.MULTILINE,
)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def read_buckets(text: str) -> dict[str, dict[float, float]]:
    """Return each deployment's buckets, summed over its replicas' main loops.

    User code runs on that loop, too: see serve_app/tuning.py.
    """
    found: dict[str, dict[float, float]] = {}
    for match in _BUCKET.finditer(text):
        labels = dict(_LABEL.findall(match["labels"]))
        if labels.get("loop_type") != "main" or "deployment" not in labels:
            continue
        buckets = found.setdefault(labels["deployment"], {})
        bound = float(labels["le"].replace("+Inf", "inf")) / 1000
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
