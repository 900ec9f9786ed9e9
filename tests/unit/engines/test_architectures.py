"""Every family of Ultralytics is opened and answers as `YOLO(path).predict` does."""

import numpy as np
import pytest

from serve_app.engines.torch_engine import TorchEngine
from serve_app.types import ImageArray, PredictParams, Task
from tests.support.checkpoints import CheckpointFolder, reference
from tests.support.models import answer

PARAMS = PredictParams(conf=0.01, max_det=50)

ARCHITECTURES = [
    "yolov3-tiny",
    "yolov5n",
    "yolov6n",
    "yolov8n",
    "yolov9t",
    "yolov10n",
    "yolo11n",
    "yolo12n",
    "yolo26n",
    "tiny-rtdetr",
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_like_ultralytics(
    architecture: str, checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """The boxes, classes and confidences are those of the reference."""
    path = checkpoints(architecture, imgsz=96)
    engine = TorchEngine()
    estimate = engine.verify(path)
    model = engine.open(path)
    model.warm_up()

    result = answer(model, bus, PARAMS)

    expected = reference(path, bus, conf=0.01, max_det=50)
    assert len(result.class_id) > 0
    assert result.boxes is not None
    assert result.class_id.tolist() == expected.boxes.cls.int().tolist()
    np.testing.assert_allclose(result.boxes, expected.boxes.xyxy.numpy(), atol=0.05)
    np.testing.assert_allclose(result.confidence, expected.boxes.conf.numpy(), atol=1e-4)
    assert model.info.task is Task.DETECT
    assert estimate.own_bytes == model.footprint.own_bytes
    assert estimate.shared.keys() == model.footprint.shared.keys()
    model.close()
