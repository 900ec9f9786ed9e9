"""Exports of small checkpoints."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from ultralytics.models import YOLO

from tests.support.checkpoints import CheckpointFolder


@pytest.fixture(scope="session")
def exported(checkpoints: CheckpointFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with a fixed shape of 96 x 96."""
    path = tmp_path_factory.mktemp("onnx") / "net-tiny.pt"
    shutil.copy(checkpoints("tiny-detect", imgsz=96), path)
    model: Any = YOLO(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that it fixes
        return Path(model.export(format="onnx", simplify=False, imgsz=96, verbose=False))
