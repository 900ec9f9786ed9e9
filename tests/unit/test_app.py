"""The application is built with what the cluster has."""

from typing import Any

import pytest
from ray.serve.schema import LoggingConfig

from serve_app import app
from serve_app.settings import AppArgs
from serve_app.tuning import HAPROXY_SWITCH


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
