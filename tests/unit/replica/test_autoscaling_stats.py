"""What a replica tells the autoscaler, from the cache's events."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from serve_app.cache.observer import EvictionReason
from serve_app.metrics import Metrics
from serve_app.replica.autoscaling_stats import AutoscalingStats
from serve_app.types import ModelKey, ResidentModel

A, B = ModelKey("a", "1"), ModelKey("b", "1")


@dataclass
class Recorder:
    """Stands where the metrics stand."""

    sizes: list[int] = field(default_factory=list)
    regrets: int = 0

    def working_set(self, size: int) -> None:
        """Take the gauge."""
        self.sizes.append(size)

    def regretted(self) -> None:
        """Count."""
        self.regrets += 1


@dataclass
class Replica:
    """The stats with a clock of the test's."""

    now: float = 100.0
    metrics: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self.stats = AutoscalingStats(cast(Metrics, self.metrics), 60.0, lambda: self.now)

    def report(self, *models: ResidentModel, **changes: Any) -> dict[str, float]:  # noqa: ANN401
        """Report with 100 bytes of budget, of which 20 are shared by the models."""
        plain = {"used_bytes": 20 + sum(model.bytes for model in models), "budget_bytes": 100}
        return self.stats.report(models, **{**plain, "max_models": None, "wanted": {}, **changes})


def _model(key: ModelKey, size: int, *, pinned: bool = False) -> ResidentModel:
    return ResidentModel(str(key), "resident", size, 0, pinned, 0.0)


def test_room_is_what_graphs_leave_or_what_the_count_allows() -> None:
    """Each replica has its own graphs."""
    replica = Replica()
    assert replica.report(_model(A, 10), _model(B, 30))["budget_bytes"] == 80
    assert replica.report(_model(A, 10), _model(B, 30), max_models=3)["budget_bytes"] == 60
    assert replica.report(max_models=3, used_bytes=0)["budget_bytes"] == 100
    assert replica.report(used_bytes=150)["budget_bytes"] == 0


@pytest.mark.parametrize(
    ("reason", "regrets"),
    [("budget", 1), ("max_models", 1), ("reconfigured", 1), ("unloaded", 0), ("shutdown", 0)],
)
def test_only_evictions_for_want_of_room_are_regretted(
    reason: EvictionReason, regrets: int
) -> None:
    """More room would not have spared the others."""
    replica = Replica()
    replica.stats.requested(A)
    replica.stats.evicted(A, reason)
    replica.stats.requested(A)
    assert replica.metrics.regrets == regrets
    assert bool(replica.report()["regrets_per_s"]) == bool(regrets)


def test_the_size_of_a_model_that_left_again_is_known() -> None:
    """It was seen while the model was in memory."""
    replica = Replica()
    replica.stats.requested(A)
    replica.stats.sized([_model(A, 40)])
    replica.stats.requested(A)
    assert replica.report()["working_set_bytes"] == 40


def test_second_copies_need_no_room_in_the_fleet() -> None:
    """Else the copies made before it shrinks would keep it from shrinking."""
    replica = Replica()
    for key in (A, B):
        replica.stats.requested(key)
        replica.stats.requested(key)
    models = [_model(A, 10, pinned=True), _model(B, 30, pinned=True)]
    report = replica.report(*models, wanted={"a@1": 1, "b@1": 1}, second={"b@1"})
    assert report["pinned:a@1"] == 10
    assert "pinned:b@1" not in report
    assert report["working_set_bytes"] == report["pinned_bytes"] == 0


def test_pinned_models_are_told_apart() -> None:
    """By the copies that are wanted of them."""
    replica = Replica()
    for key in (A, B, A, B):
        replica.stats.requested(key)
    models = [_model(A, 10, pinned=True), _model(B, 30, pinned=True)]
    report = replica.report(*models, wanted={str(A): 2, str(B): None, "c@1": 5})
    assert report["working_set_bytes"] == 0
    assert report["pinned:a@1"] == 20
    assert (report["everywhere_bytes"], report["copies"], report["asked"]) == (30, 2, 2)


def test_a_new_window_begins_a_new_count() -> None:
    """The same one changes nothing."""
    replica = Replica()
    replica.stats.requested(A)
    replica.stats.configure(60.0)
    assert replica.report()["asked"] == 1
    replica.stats.configure(30.0)
    assert replica.report()["asked"] == 0


def test_the_gauge_is_set_without_an_autoscaler_too() -> None:
    """But not on every change."""
    replica = Replica()
    replica.stats.requested(A)
    replica.stats.requested(A)
    replica.stats.sized([_model(A, 40)])
    replica.stats.sized([_model(A, 40)])
    assert replica.metrics.sizes == [40]
    replica.now += 1.5
    replica.stats.sized([_model(A, 50)])
    assert replica.metrics.sizes == [40, 50]
