"""Every metric of the application: name, unit and labels, in one place (docs/metrics.md).

Ray adds the labels deployment, replica and application, and exports each name with the prefix
`ray_`. Counters get the suffix `_total`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ray.serve import metrics

MAX_MODEL_LABELS = 100
OTHER_MODELS = "other"
_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is called, what it counts and which labels it has."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()


RESIDENT = Metric("gauge", "serve_app_models_resident", "models", "Models in device memory.")
USED = Metric("gauge", "serve_app_memory_used_bytes", "bytes", "Memory that models hold.")
BUDGET = Metric("gauge", "serve_app_memory_budget_bytes", "bytes", "Memory that models may hold.")
LOOKUPS = Metric(
    "counter",
    "serve_app_model_lookups",
    "requests",
    "Requests that hit a resident model, waited for a load in progress, or missed.",
    ("outcome",),
)
LOADS = Metric(
    "histogram", "serve_app_model_load_seconds", "seconds", "Loading a model.", ("phase",)
)
LOAD_FAILURES = Metric(
    "counter", "serve_app_model_load_failures", "loads", "Loads that failed.", ("code",)
)
EVICTIONS = Metric(
    "counter", "serve_app_model_evictions", "models", "Models that left memory.", ("reason",)
)
REQUESTS = Metric(
    "histogram",
    "serve_app_request_seconds",
    "seconds",
    "Answering a request, by phase; `total` is the whole stay in the replica.",
    ("model", "phase"),
)
ALL = (RESIDENT, USED, BUDGET, LOOKUPS, LOADS, LOAD_FAILURES, EVICTIONS, REQUESTS)


class ModelLabels:
    """Keeps the number of distinct `model` labels bounded, whatever the number of models.

    The first `limit` names keep their own label for the life of the replica; all further ones
    share `other`. A label that came and went would leave its series behind in the exporter.
    """

    def __init__(self, limit: int = MAX_MODEL_LABELS) -> None:
        """Allow `limit` names besides `other`."""
        self._limit = limit
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """Return the label for the model `name`."""
        if name not in self._known:
            if len(self._known) >= self._limit:
                return OTHER_MODELS
            self._known.add(name)
        return name


class Metrics:
    """The metrics of one replica, ready to be written to."""

    def __init__(self) -> None:
        """Register them all; only inside a Serve replica."""
        self._labels = ModelLabels()
        self._gauges = {m: metrics.Gauge(m.name, m.help) for m in ALL if m.kind == "gauge"}
        self._counters = {
            m: metrics.Counter(m.name, m.help, tag_keys=m.labels)  # type: ignore[arg-type]
            for m in ALL
            if m.kind == "counter"
        }
        self._histograms = {
            m: metrics.Histogram(m.name, m.help, boundaries=_SECONDS, tag_keys=m.labels)  # type: ignore[arg-type]
            for m in ALL
            if m.kind == "histogram"
        }

    def memory(self, *, resident: int, used_bytes: int, budget_bytes: int) -> None:
        """Record what is in memory now."""
        self._gauges[RESIDENT].set(resident)
        self._gauges[USED].set(used_bytes)
        self._gauges[BUDGET].set(budget_bytes)

    def lookup(self, outcome: str) -> None:
        """Count a request by whether its model was there."""
        self._counters[LOOKUPS].inc(tags={"outcome": outcome})

    def loaded(self, seconds: float, phases_s: Mapping[str, float]) -> None:
        """Record a load: its whole time, and the time of each phase."""
        for phase, value in {**phases_s, "total": seconds}.items():
            self._histograms[LOADS].observe(value, tags={"phase": phase})

    def load_failed(self, code: str) -> None:
        """Count a failed load by the code of its error."""
        self._counters[LOAD_FAILURES].inc(tags={"code": code})

    def evicted(self, reason: str) -> None:
        """Count a model that left memory."""
        self._counters[EVICTIONS].inc(tags={"reason": reason})

    def answered(self, model: str, phases_s: Mapping[str, float]) -> None:
        """Record an answered request, each phase in seconds."""
        label = self._labels.label(model)
        for phase, value in phases_s.items():
            self._histograms[REQUESTS].observe(value, tags={"model": label, "phase": phase})
