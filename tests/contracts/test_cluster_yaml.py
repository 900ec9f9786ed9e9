"""cluster.yaml and its variant for machines of one's own, against Ray's own validation."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from serve_app import app, preflight, tuning

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/cluster.md").read_text()
Json = dict[str, Any]


def _documented(heading: str) -> Json:
    """Return the first YAML block under a heading of docs/cluster.md."""
    section = DOCS.split(f"## {heading}\n", 1)[1]
    block = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return dict(yaml.safe_load(block[1]))


def _aws() -> Json:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def _on_premises() -> Json:
    return {**_aws(), **_documented("Machines of your own"), "available_node_types": None}


def _validate(config: Json) -> Json:
    prepared: Json = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_takes_the_cluster() -> None:
    """As `ray up` does before it starts anything."""
    assert _validate(_aws())["max_workers"] == 8


def test_ray_takes_the_variant_on_premises() -> None:
    """What docs/cluster.md says to replace: no node types, but addresses."""
    config = _on_premises()
    del config["available_node_types"], config["head_node_type"]
    prepared = _validate(config)
    assert prepared["provider"]["type"] == "local"
    assert prepared["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("where", [(), ("auth",), ("available_node_types", "gpu-t4")])
def test_ray_refuses_unknown_keys(where: tuple[str, ...]) -> None:
    """So a misspelt one does not go unnoticed; but for `provider`, where Ray takes any."""
    config = _aws()
    part = config
    for key in where:
        part = part[key]
    part["worker_nodes_typo"] = 1
    with pytest.raises(jsonschema.ValidationError, match="worker_nodes_typo"):
        _validate(config)


def test_detectors_land_on_gpu_workers_only() -> None:
    """The head has no CPU and no GPU to schedule on; both kinds of workers have one GPU."""
    types = _aws()["available_node_types"]
    head = types.pop(_aws()["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert len({worker["node_config"]["InstanceType"] for worker in types.values()}) == 2
    for worker in types.values():
        assert worker["resources"]["GPU"] == 1
        assert worker["min_workers"] < worker["max_workers"]


def test_instances_keep_their_credentials() -> None:
    """Every kind of node asks for session tokens, and encrypts its disk."""
    for node in _aws()["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


def test_every_node_starts_in_the_environment() -> None:
    """deploy/serve.env is what `make serve` sets, but for names in a folder of its own."""
    lines = (ROOT / "deploy/serve.env").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    ray = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    assert found == {**tuning.BASE, **tuning.HAPROXY, **ray}
    for config in (_aws(), _on_premises()):
        starts = config["head_start_ray_commands"][1:] + config["worker_start_ray_commands"][1:]
        assert len(starts) == 3
        for command in starts:
            assert "cd ~/yolo && set -a && . deploy/serve.env && set +a &&" in command


def test_what_a_gpu_cluster_adds_is_valid() -> None:
    """The lines that docs/cluster.md adds to serve_config.yaml."""
    added = _documented("What a GPU cluster adds to serve_config.yaml")["applications"][0]
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    (application,) = config["applications"]
    application["args"] |= added["args"]
    by_name = {deployment["name"]: deployment for deployment in application["deployments"]}
    for deployment in added["deployments"]:
        by_name[deployment.pop("name")] |= deployment
    preflight.check_config(config)


def test_ingress_replicas_keep_away_from_the_gpu_workers() -> None:
    """The label that app.py avoids is the one that the workers have, and the head has not."""
    types = _aws()["available_node_types"]
    labels = {name: node.get("labels", {}).get(app.ROLE_LABEL) for name, node in types.items()}
    assert labels == {"head": None, "gpu-t4": app.DETECTOR_ROLE, "gpu-l4": app.DETECTOR_ROLE}
