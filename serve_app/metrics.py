"""Every metric of the application: name, unit and labels, in one place (docs/metrics.md).

Ray adds the labels deployment, replica and application, and exports each name with the prefix
`ray_`. Counters get the suffix `_total`.
"""

from collections import Counter
from collections.abc import Collection, Mapping
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
COPIES = Metric(
    "gauge",
    "serve_app_model_resident",
    "models",
    "Versions of a model in device memory; their sum over the replicas is its copies.",
    ("model",),
)
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
SET_ASIDE = Metric(
    "gauge", "serve_app_models_set_aside", "models", "Models whose loads kept failing."
)
EVICTIONS = Metric(
    "counter", "serve_app_model_evictions", "models", "Models that left memory.", ("reason",)
)
WORKING_SET = Metric(
    "gauge",
    "serve_app_working_set_bytes",
    "bytes",
    "Models that were asked for at least twice within the window, in memory or not.",
)
REGRETS = Metric(
    "counter",
    "serve_app_model_regrets",
    "requests",
    "Requests whose model had been evicted for want of room within the window.",
)
REQUESTS = Metric(
    "histogram",
    "serve_app_request_seconds",
    "seconds",
    "Answering a request, by phase; `total` is the whole stay in the replica.",
    ("model", "phase"),
)
ALL = (
    RESIDENT,
    COPIES,
    USED,
    BUDGET,
    LOOKUPS,
    LOADS,
    LOAD_FAILURES,
    SET_ASIDE,
    EVICTIONS,
    WORKING_SET,
    REGRETS,
    REQUESTS,
)


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


class Copies:
    """How many models are in memory under each label, and which labels have none any more."""

    def __init__(self, labels: ModelLabels) -> None:
        """Share the labels of all metrics."""
        self._labels = labels
        self._shown: frozenset[str] = frozenset()

    def update(self, names: Collection[str]) -> dict[str, int]:
        """Return the number under each label; 0 once for one that had some before."""
        counts = Counter(self._labels.label(name) for name in names)
        gone = self._shown - counts.keys()
        self._shown = frozenset(counts)
        return {**counts, **dict.fromkeys(gone, 0)}


class Metrics:
    """The metrics of one replica, ready to be written to."""

    def __init__(self) -> None:
        """Register them all; only inside a Serve replica."""
        self._labels = ModelLabels()
        self._copies = Copies(self._labels)
        self._gauges = {
            m: metrics.Gauge(m.name, m.help, tag_keys=m.labels)  # type: ignore[arg-type]
            for m in ALL
            if m.kind == "gauge"
        }
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

    def memory(self, *, resident: Collection[str], used_bytes: int, budget_bytes: int) -> None:
        """Record what is in memory now; `resident` are the names, one for each version."""
        self._gauges[RESIDENT].set(len(resident))
        for label, count in self._copies.update(resident).items():
            self._gauges[COPIES].set(count, tags={"model": label})
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

    def set_aside(self, models: int) -> None:
        """Record how many models are not loaded for now because their loads kept failing."""
        self._gauges[SET_ASIDE].set(models)

    def evicted(self, reason: str) -> None:
        """Count a model that left memory."""
        self._counters[EVICTIONS].inc(tags={"reason": reason})

    def working_set(self, size: int) -> None:
        """Record the bytes of the working set."""
        self._gauges[WORKING_SET].set(size)

    def regretted(self) -> None:
        """Count a request for a model that was evicted not long ago."""
        self._counters[REGRETS].inc()

    def answered(self, model: str, phases_s: Mapping[str, float]) -> None:
        """Record an answered request, each phase in seconds."""
        label = self._labels.label(model)
        for phase, value in phases_s.items():
            self._histograms[REQUESTS].observe(value, tags={"model": label, "phase": phase})
