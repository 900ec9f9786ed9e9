"""The application is built with what the cluster has."""

from typing import Any

import pytest
from ray.serve.schema import LoggingConfig

from serve_app import app
from serve_app.replica.health import LEAVE_AFTER_S
from serve_app.settings import AppArgs
from serve_app.tuning import HAPROXY_SWITCH, ONE_NODE


@pytest.mark.parametrize(
    ("device", "cluster", "expected"),
    [
        ("auto", {"CPU": 2.0}, {"num_cpus": 1}),
        ("auto", {"CPU": 2.0, "GPU": 4.0}, {"num_cpus": 1, "num_gpus": 1}),
        ("cpu", {"CPU": 2.0, "GPU": 4.0}, {"num_cpus": 1}),
        ("cuda", {"CPU": 2.0}, {"num_cpus": 1, "num_gpus": 1}),
    ],
)
def test_replicas_take_a_gpu_where_there_is_one(
    device: str,
    cluster: dict[str, float],
    expected: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same file serves a laptop and a GPU node."""
    monkeypatch.setattr("ray.cluster_resources", lambda: cluster)
    args = AppArgs.parse({"device": device})
    assert app._actor_options(args) == expected


def test_the_application_has_an_ingress_over_a_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """`build` takes the settings as Ray Serve gives them and binds both deployments."""
    monkeypatch.setattr("ray.cluster_resources", dict)
    built = app.build(AppArgs())
    assert app.build.__annotations__["args"] is AppArgs, "Serve parses by this annotation"
    deployment: Any = built._bound_deployment
    assert deployment.name == "Ingress"
    (args, detector) = deployment.init_args
    assert args.repository.is_absolute()
    assert detector._bound_deployment.name == "Detector"
    assert detector._bound_deployment.user_config == {}


@pytest.mark.parametrize(("haproxy", "queued"), [("1", 64), ("0", 1024), (None, 1024)])
def test_requests_are_refused_by_us_and_not_by_serves_queue(
    haproxy: str | None, queued: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ingress replica begins more than detectors take; what waits before it is bounded.

    Serve's own proxy takes a burst for a queue, so there the bound is a large one.
    """
    monkeypatch.setattr("ray.cluster_resources", dict)
    monkeypatch.delenv(HAPROXY_SWITCH, raising=False)
    if haproxy is not None:
        monkeypatch.setenv(HAPROXY_SWITCH, haproxy)
    built: Any = app.build(AppArgs())._bound_deployment
    (_, bound) = built.init_args
    detector = bound._bound_deployment
    assert detector.max_queued_requests > 0
    taken = detector.max_ongoing_requests + detector.max_queued_requests
    assert built.max_ongoing_requests > 2 * taken
    assert built.max_queued_requests == queued
    assert built.backpressure_config.status_code == 503
    assert built.backpressure_config.retry_after_s, "like our own 503"


def test_one_line_is_logged_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the ingress alone."""
    monkeypatch.setattr("ray.cluster_resources", dict)
    built: Any = app.build(AppArgs())._bound_deployment
    (_, bound) = built.init_args
    assert built.logging_config is None
    assert LoggingConfig(**bound._bound_deployment.logging_config).enable_access_log is False


def test_replicas_that_end_finish_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both deployments have longer than the longest request takes."""
    monkeypatch.setattr("ray.cluster_resources", dict)
    built: Any = app.build(AppArgs.parse({"request_timeout_s": 600}))._bound_deployment
    (_, bound) = built.init_args
    for deployment in (built, bound._bound_deployment):
        config = deployment._deployment_config
        assert config.graceful_shutdown_timeout_s > 600
        assert config.graceful_shutdown_wait_loop_s < 1


def test_clients_always_find_an_ingress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its new version runs before the old one stops; a detector's would wait for a device."""
    monkeypatch.setattr("ray.cluster_resources", dict)
    built: Any = app.build(AppArgs())._bound_deployment
    (_, bound) = built.init_args
    assert built._deployment_config.max_surge_percent == 100
    assert bound._bound_deployment._deployment_config.max_surge_percent == 0


def test_a_starved_ingress_is_not_ended_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take its clients' connections with it; a detector's calls are made anew."""
    monkeypatch.setattr("ray.cluster_resources", dict)
    built: Any = app.build(AppArgs())._bound_deployment
    (_, bound) = built.init_args
    assert built._deployment_config.health_check_timeout_s == 30
    assert bound._bound_deployment._deployment_config.health_check_timeout_s == 10


def test_a_stuck_replica_is_replaced_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by the next check, which Ray puts off by up to a tenth, and leaves soon."""
    monkeypatch.setattr("ray.cluster_resources", dict)
    args = AppArgs()
    built: Any = app.build(args)._bound_deployment
    (_, bound) = built.init_args
    config = bound._bound_deployment._deployment_config
    found_s = args.stuck_after_s + 1.1 * config.health_check_period_s
    assert found_s + LEAVE_AFTER_S < 60 - 15, "the rest is for the start of the next one"
    assert config.health_check_timeout_s >= 10, "a busy machine is no stuck replica"


@pytest.mark.parametrize(
    ("one_node", "cluster", "per_node"),
    [("0", {"CPU": 8.0}, 1), ("1", {"CPU": 8.0}, None), ("0", {"CPU": 8.0, "GPU": 2.0}, None)],
)
def test_a_detector_without_a_gpu_has_a_node_for_itself(
    one_node: str,
    cluster: dict[str, float],
    per_node: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its engine uses all cores; on a single machine the autoscaling policy sees to it."""
    monkeypatch.setattr("ray.cluster_resources", lambda: cluster)
    monkeypatch.setenv(ONE_NODE, one_node)
    built: Any = app.build(AppArgs())._bound_deployment
    (_, bound) = built.init_args
    assert bound._bound_deployment._replica_config.max_replicas_per_node == per_node
