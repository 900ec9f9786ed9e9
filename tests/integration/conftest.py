"""One running application for the whole session: a Ray start costs seconds."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ultralytics.models import YOLO

import serve_app.engines  # noqa: F401 - settles the environment before Ultralytics is imported
from tests.integration.server import (
    Json,
    Server,
    free_port,
    make_config,
    serving,
    wait_until,
)
from tests.support.attack import write_malicious_checkpoint

ROOT = Path(__file__).parents[2]
DEMO_MODELS = ("fasteners-n", "components-n", "codes-n", "fasteners-s")
FLEET_USER_CONFIG = {"memory_budget": "512MiB", "preload": list(DEMO_MODELS)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: the demo models, and files that are no good."""
    folder = tmp_path_factory.mktemp("models")
    for name in DEMO_MODELS:
        shutil.copytree(ROOT / "models" / name, folder / name)
    _export(folder / "codes-n/1/model.pt", folder / "codes-onnx/1/model.onnx")
    (folder / "corrupt" / "1").mkdir(parents=True)
    (folder / "corrupt" / "1" / "model.pt").write_bytes(b"PK\x03\x04 and then nothing of use")
    (folder / "malicious" / "1").mkdir(parents=True)
    write_malicious_checkpoint(folder / "malicious" / "1" / "model.pt", folder / "executed")
    return folder


def _export(checkpoint: Path, target: Path) -> None:
    """Export with a fixed shape, as `yolo export format=onnx` does."""
    target.parent.mkdir(parents=True)
    copy = shutil.copy(checkpoint, target.with_suffix(".pt"))
    model: Any = YOLO(str(copy))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that it fixes
        model.export(format="onnx", simplify=False, imgsz=320, verbose=False)
    Path(copy).unlink()
    assert target.exists()


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The application over `repository`; tests change its `user_config`, not its structure."""
    config = make_config(
        repository,
        free_port(),
        args={
            "official_models": ["yolo11n"],
            "official_url": "http://127.0.0.1:9",  # nothing listens: no network, on any machine
            "max_body_bytes": "4MiB",
        },
    )
    with serving(config, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def fleet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of `fleet`, which may be taken away and must be brought back."""
    return shutil.copytree(ROOT / "models", tmp_path_factory.mktemp("repository") / "models")


@pytest.fixture(scope="session")
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


def replicas_of(server: Server) -> dict[str, Json]:
    """Return what each replica says of itself, by its id; nothing while they cannot be asked."""
    answer = server.client.get("/v1/replicas")
    found = answer.json()["replicas"] if answer.status_code == 200 else []
    return {replica["replica_id"]: replica for replica in found}


@pytest.fixture(scope="session")
def scenes() -> dict[str, bytes]:
    """The shipped sample pictures by name."""
    return {path.stem: path.read_bytes() for path in sorted((ROOT / "demo/samples").glob("*.jpg"))}
