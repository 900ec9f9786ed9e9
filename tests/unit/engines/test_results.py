"""Results carry what each task finds, and are drawn without reaching for the network."""

import socket
from pathlib import Path

import cv2
import numpy as np
import pytest

from serve_app.engines.torch_engine import TorchEngine
from serve_app.types import ImageArray, PredictParams
from tests.support.checkpoints import CheckpointFolder, build, save
from tests.support.models import answer

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "yolo11n": {"boxes": (4,)},
    "yolo11n-seg": {"boxes": (4,)},
    "yolo11n-pose": {"boxes": (4,), "keypoints": (17, 3)},
    "yolo11n-obb": {"corners": (4, 2)},
    "yolo11n-cls": {},
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whatever opens a socket."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("conf", [0.05, 1.0])
@pytest.mark.usefixtures("no_network")
def test_every_task_fills_its_own_fields(
    architecture: str, conf: float, checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """With and without findings; what a task does not have is None."""
    model = TorchEngine().open(checkpoints(architecture, imgsz=160))

    result = answer(model, bus, PredictParams(conf=conf, max_det=5), annotate=True)

    count = len(result.class_id)
    assert count == 5 if conf < 1 or architecture.endswith("-cls") else count == 0
    assert result.confidence.dtype == np.float32
    assert sorted(result.confidence, reverse=True) == list(result.confidence)
    for name in ("boxes", "corners", "keypoints"):
        array = getattr(result, name)
        shape = SHAPES[architecture].get(name)
        assert (array is None) == (shape is None)
        assert array is None or array.shape == (count, *(shape or ()))
    assert (result.polygons is None) == (not architecture.endswith("-seg"))
    assert result.polygons is None or len(result.polygons) == count
    assert set(result.speed_ms) == {"preprocess", "inference", "postprocess"}
    drawn = cv2.imdecode(np.frombuffer(result.annotated or b"", np.uint8), cv2.IMREAD_COLOR)
    assert drawn is not None
    assert drawn.shape == bus.shape
    model.close()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("architecture", ["yolo11n", "yolo11n-cls"])
def test_names_in_any_script_are_drawn_offline(
    architecture: str, tmp_path: Path, bus: ImageArray
) -> None:
    """Ultralytics would download a font for them."""
    module = build(architecture, imgsz=96)
    module.names = {class_id: f"деталь-部品-{class_id}" for class_id in module.names}
    model = TorchEngine().open(save(module, tmp_path / "model.pt"))
    before = bus.copy()

    result = answer(model, bus, PredictParams(conf=0.05, max_det=5), annotate=True)

    assert result.annotated is not None
    assert model.info.names[3] == "деталь-部品-3"
    np.testing.assert_array_equal(bus, before)
    model.close()
