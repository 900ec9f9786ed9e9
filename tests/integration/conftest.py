"""One running application for the whole session: a Ray start costs seconds."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ultralytics.models import YOLO

import serve_app.engines  # noqa: F401 - settles the environment before Ultralytics is imported
from tests.integration.server import Server, free_port, make_config, serving
from tests.support.attack import write_malicious_checkpoint

ROOT = Path(__file__).parents[2]
DEMO_MODELS = ("fasteners-n", "components-n", "codes-n", "fasteners-s")


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
def scenes() -> dict[str, bytes]:
    """The shipped sample pictures by name."""
    return {path.stem: path.read_bytes() for path in sorted((ROOT / "demo/samples").glob("*.jpg"))}
