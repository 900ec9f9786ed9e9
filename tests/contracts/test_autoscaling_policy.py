"""The policy in Ray's own decision loop: what Ray calls it with, and what becomes of its answer."""

import logging
import time
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    HandleMetricReport,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.config import AutoscalingConfig

from serve_app.scaling.check import POLICY
from serve_app.scaling.reports import PinnedModel, to_report
from serve_app.scaling.working_set import WorkingSetState
from serve_app.tuning import ONE_NODE

ID = DeploymentID("Detector", "yolo")
CALM = WorkingSetState(bytes=50, models=5, asked=5, requests_per_s=5.0)
THRASHING = WorkingSetState(bytes=190, models=19, asked=19, requests_per_s=5.0, regrets_per_s=2.0)


class Stub:
    """Stands where the Detector stands."""


class Controller:
    """Ray's autoscaling of one deployment, with a clock that a test moves and replicas it makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:  # noqa: ANN401
        self.now = 1000.0
        monkeypatch.setattr(time, "time", lambda: self.now)
        kwargs = settings.pop("policy_kwargs", {"settle_s": 0})
        config = AutoscalingConfig(
            **{
                "min_replicas": 1,
                "max_replicas": 5,
                "target_ongoing_requests": 16,
                "metrics_interval_s": 1,
                "look_back_period_s": 5,
                "upscale_delay_s": 0,
                "downscale_delay_s": 0,
                "policy": {"policy_function": POLICY, "policy_kwargs": kwargs},
                **settings,
            }
        )
        info = DeploymentInfo(
            deployment_config=DeploymentConfig(autoscaling_config=config),
            replica_config=ReplicaConfig.create(Stub),
            start_time_ms=0,
            deployer_job_id="",
        )
        self.state = DeploymentAutoscalingState(ID)
        self.target = self.state.register(info, 1)
        self.run(self.target)

    def run(self, count: int) -> None:
        """Have `count` replicas run."""
        self.replicas = [ReplicaID(f"r{number}", ID) for number in range(count)]
        self.state.update_running_replica_ids(self.replicas)

    def report(self, *reports: dict[str, Any]) -> None:
        """Take a report of each replica."""
        self.now += 1
        for replica, report in zip(self.replicas, reports, strict=True):
            metrics = {name: [TimeStampedValue(self.now, value)] for name, value in report.items()}
            self.state.record_request_metrics_for_replica(
                ReplicaMetricReport(replica_id=replica, metrics=metrics, timestamp=self.now)
            )

    def queue(self, count: float) -> None:
        """Have `count` requests wait at a handle."""
        self.state.record_request_metrics_for_handle(
            HandleMetricReport(
                deployment_id=ID,
                handle_id="h",
                actor_id="a",
                handle_source=DeploymentHandleSource.REPLICA,
                queued_requests=[TimeStampedValue(self.now, count)],
                metrics={},
                timestamp=self.now,
            )
        )

    def decide(self) -> int:
        """Return Ray's decision after one tick, and take it for the target."""
        self.now += 0.1
        self.target = self.state.get_decision_num_replicas(self.target)
        return self.target


def _report(state: WorkingSetState, budget: int = 100) -> dict[str, float]:
    return to_report(state, budget, [])


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster to which nodes can be added."""
    monkeypatch.delenv(ONE_NODE, raising=False)


def test_it_grows_by_regrets_and_shrinks_when_they_are_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without any queue, and back once nothing is asked for."""
    controller = Controller(monkeypatch)
    controller.report(_report(CALM))
    assert controller.decide() == 1
    controller.report(_report(THRASHING))
    assert controller.decide() == 2
    controller.run(2)
    half = WorkingSetState(bytes=95, models=9, asked=9, requests_per_s=2.5)
    controller.report(_report(half), _report(half))
    assert controller.decide() == 2, "one could not hold what is asked for"
    nothing = WorkingSetState()
    controller.report(_report(nothing), _report(nothing))
    assert controller.decide() == 1


def test_delays_bounds_and_queues_are_as_with_rays_own_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the policy wants is acted on when it has wanted it for long enough."""
    controller = Controller(monkeypatch, upscale_delay_s=3)
    controller.report(_report(CALM))
    controller.queue(200.0)
    assert controller.decide() == 1
    controller.now += 3
    assert controller.decide() == 5, "13 would be right, 5 is the most"


def test_to_zero_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last replica goes when nothing is asked for; a queued request brings it back."""
    controller = Controller(monkeypatch, min_replicas=0, initial_replicas=1)
    controller.report(_report(CALM))
    assert controller.decide() == 1
    controller.report(_report(WorkingSetState()))
    assert controller.decide() == 0
    controller.run(0)
    assert controller.decide() == 0
    controller.queue(1.0)
    assert controller.decide() == 1
    assert controller.decide() == 1, "it is starting"


def test_pinned_models_keep_the_last_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as they are pinned."""
    controller = Controller(monkeypatch, min_replicas=0, initial_replicas=1)
    pinned = to_report(WorkingSetState(), 100, [PinnedModel("a@1", 10, None)])
    controller.report(pinned)
    assert controller.decide() == 1
    controller.report(_report(WorkingSetState()))
    assert controller.decide() == 0


@pytest.mark.parametrize("fixed", ["variable", "setting"])
def test_no_replica_is_asked_for_that_has_no_place(
    fixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a single machine, or where the operator says that nothing adds nodes."""
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}] * 2)
    kwargs = {"settle_s": 0, **({"fixed_cluster": True} if fixed == "setting" else {})}
    controller = Controller(monkeypatch, policy_kwargs=kwargs)
    if fixed == "variable":
        monkeypatch.setenv(ONE_NODE, "1")
    controller.report(_report(WorkingSetState(bytes=900, regrets_per_s=2.0)))
    controller.queue(200.0)
    assert controller.decide() == 2


def test_missing_and_odd_reports_never_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then queues alone decide."""
    controller = Controller(monkeypatch)
    assert controller.decide() == 1
    for value in (None, "x", float("nan"), -1.0):
        controller.report({"budget_bytes": value, "hot:a@1": value, "regrets_per_s": value})
        controller.queue(20.0)
        assert controller.decide() == 2
        controller.queue(0.0)
        controller.now += 10
        controller.queue(0.0)
        assert controller.decide() == 1


def test_an_error_in_it_is_logged_once_and_queues_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller goes on."""
    said: list[tuple[object, ...]] = []
    monkeypatch.setattr(logging.getLogger("ray.serve"), "error", lambda *text: said.append(text))
    monkeypatch.setenv(ONE_NODE, "1")

    def fail() -> None:
        raise ConnectionError("the cluster is away")

    monkeypatch.setattr("ray.nodes", fail)
    controller = Controller(monkeypatch)
    controller.report(_report(CALM))
    controller.queue(40.0)
    assert [controller.decide() for _ in range(5)] == [3] * 5
    assert len(said) == 1
    assert "the cluster is away" in str(said[0][-1])


def test_wrong_kwargs_do_not_keep_the_controller_from_deploying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`serve deploy` makes none of our checks; then the defaults are in force."""
    controller = Controller(monkeypatch, policy_kwargs={"margn": 1})
    controller.report(_report(CALM))
    assert controller.decide() == 1
