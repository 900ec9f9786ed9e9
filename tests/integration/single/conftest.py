"""One detector and one ingress replica, for the tests of this folder."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ultralytics.models import YOLO

import serve_app.engines  # noqa: F401 - settles the environment before Ultralytics is imported
from tests.integration.front import MAX_BODY_BYTES
from tests.integration.server import (
    DEMO_MODELS,
    ROOT,
    Server,
    free_port,
    make_config,
    serving,
)
from tests.support.attack import write_malicious_checkpoint

METRICS_INTERVAL_MS = 2000
"""Ray's processes hand their metrics over every ten seconds otherwise."""


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The application over `repository`; tests change its `user_config`, not its structure."""
    config = make_config(
        repository,
        free_port(),
        args={
            "official_models": ["yolo11n"],
            "official_url": "http://127.0.0.1:9",  # nothing listens: no network, on any machine
            "max_body_bytes": MAX_BODY_BYTES,
            "max_wait_s": None,  # tests send more at once than a busy machine answers in that time
        },
    )
    variables = {"RAY_metrics_report_interval_ms": str(METRICS_INTERVAL_MS)}
    with serving(config, tmp_path_factory.mktemp("server"), variables) as running:
        yield running
