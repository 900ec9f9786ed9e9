"""Two small detectors and two ingress replicas, for the tests of this folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.server import (
    DEMO_MODELS,
    ROOT,
    Server,
    free_port,
    make_config,
    replicas_of,
    serving,
    wait_until,
)

FLEET_USER_CONFIG = {"memory_budget": "512MiB", "preload": list(DEMO_MODELS)}


@pytest.fixture(scope="package")
def fleet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of `fleet`, which may be taken away and must be brought back."""
    return shutil.copytree(ROOT / "models", tmp_path_factory.mktemp("repository") / "models")


@pytest.fixture(scope="package")
def fleet(fleet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two small detectors on one node, tests change their number, and two ingress replicas.

    test_fleet.py begins with it as it starts; test_fleet_failures.py takes it as it was left.
    """
    config = make_config(
        fleet_folder, free_port(), args={"threads": 1}, user_config=FLEET_USER_CONFIG
    )
    detector, ingress = config["applications"][0]["deployments"]
    detector |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.3}}
    ingress |= {"num_replicas": 2}
    with serving(config, tmp_path_factory.mktemp("fleet")) as running:
        wait_until(lambda: len(replicas_of(running)) == 2, 60.0, "two replicas")
        yield running
