"""The application is built with what the cluster has."""

from typing import Any

import pytest

from serve_app import app
from serve_app.settings import AppArgs


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
