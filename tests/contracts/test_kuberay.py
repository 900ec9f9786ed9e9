"""deploy/rayservice.yaml: fits KubeRay's schema, and says what serve_config.yaml says."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import ray
import yaml

from serve_app import preflight, tuning
from tests.contracts.kuberay_schema import RAY_SERVICE

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]


@pytest.fixture
def service() -> Json:
    """The manifest, a copy for each test."""
    loaded = yaml.safe_load((ROOT / "deploy/rayservice.yaml").read_text())
    return copy.deepcopy(loaded)  # YAML's anchors make parts of it one and the same object


def _cluster(service: Json) -> Json:
    cluster: Json = service["spec"]["rayClusterConfig"]
    return cluster


def _groups(service: Json) -> list[Json]:
    return [_cluster(service)["headGroupSpec"], *_cluster(service)["workerGroupSpecs"]]


def _container(group: Json) -> Json:
    (container,) = group["template"]["spec"]["containers"]
    return dict(container)


def test_the_manifest_fits_the_schema(service: Json) -> None:
    """Every key is known and of the right type."""
    jsonschema.Draft202012Validator(RAY_SERVICE).validate(service)


def _misspell(cluster: Json) -> None:
    cluster["enableInTreeAutoscalling"] = cluster.pop("enableInTreeAutoscaling")


def _number(cluster: Json) -> None:
    cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _size(cluster: Json) -> None:
    cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"] = {
        "memory": "8 GB"
    }


def _no_name(cluster: Json) -> None:
    del cluster["workerGroupSpecs"][1]["groupName"]


@pytest.mark.parametrize("spoil", [_misspell, _number, _size, _no_name])
def test_the_schema_refuses_mistakes(service: Json, spoil: Callable[[Json], None]) -> None:
    """A schema that took everything would check nothing."""
    spoil(_cluster(service))
    assert not jsonschema.Draft202012Validator(RAY_SERVICE).is_valid(service)


def test_it_serves_what_serve_config_says(service: Json) -> None:
    """The same applications, but for what docs/cluster.md explains; our own checks take it."""
    theirs = yaml.safe_load(service["spec"]["serveConfigV2"])
    ours = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    preflight.check_config(theirs)
    (application,) = theirs["applications"]
    assert application["args"].pop("device") == "cuda"
    assert theirs["applications"] == ours["applications"]
    assert theirs["http_options"] == {**ours["http_options"], "host": "0.0.0.0"}  # noqa: S104
    assert theirs["proxy_location"] == "EveryNode"
    assert set(theirs) == set(ours)


def test_every_pod_starts_with_the_environment(service: Json) -> None:
    """Of serve_app/tuning.py; the operator adds the token's."""
    wanted = {**tuning.BASE, **tuning.HAPROXY, "RAY_USAGE_STATS_ENABLED": "0"}
    for group in _groups(service):
        assert {item["name"]: item["value"] for item in _container(group)["env"]} == wanted
    assert _cluster(service)["authOptions"] == {"mode": "token"}


def test_detectors_land_on_gpu_workers_only(service: Json) -> None:
    """The head has no CPU to schedule on, and each worker one GPU, asked for and capped alike."""
    head, *workers = _groups(service)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in _container(head)["resources"]["limits"]
    assert len({group["groupName"] for group in workers}) == 2
    for group in workers:
        resources = _container(group)["resources"]
        assert resources["requests"]["nvidia.com/gpu"] == "1"
        assert resources["limits"]["nvidia.com/gpu"] == "1"
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_pods_agree_with_each_other(service: Json) -> None:
    """One image, with the Ray of this project; every mount has a volume; models in `workingDir`."""
    assert _cluster(service)["rayVersion"] == ray.__version__
    assert len({_container(group)["image"] for group in _groups(service)}) == 1
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    repository = config["applications"][0]["args"]["repository"]
    for group in _groups(service):
        container = _container(group)
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert f"{container['workingDir']}/{repository}" in mounts
        assert set(mounts.values()) == {v["name"] for v in group["template"]["spec"]["volumes"]}
