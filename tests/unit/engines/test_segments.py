"""Many masks at once take little memory, and are the same as all at once."""

import cv2
import numpy as np
import pytest

from serve_app.engines import segments
from serve_app.engines.memory import ActivationPeak
from serve_app.engines.torch_engine import TorchEngine
from serve_app.errors import InvalidParameterError
from serve_app.types import ImageArray, PredictParams
from tests.support.checkpoints import CheckpointFolder
from tests.support.models import answer

PARAMS = PredictParams(conf=0.0, iou=1.0, max_det=40, imgsz=(320, 320))


def test_outlines_are_the_same_a_few_masks_at_a_time(
    checkpoints: CheckpointFolder, bus: ImageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last point, and in the same order; the picture differs where masks overlap only."""
    model = TorchEngine().open(checkpoints("yolo11n-seg"))
    whole = answer(model, bus, PARAMS, annotate=True)
    monkeypatch.setattr(segments, "_MAX_AT_ONCE", 3 * 320 * 320)

    parts = answer(model, bus, PARAMS)
    drawn = answer(model, bus, PARAMS, annotate=True)

    assert whole.polygons is not None
    assert len(whole.polygons) > 10
    for found in (parts, drawn):
        assert found.polygons is not None
        assert found.boxes is not None
        np.testing.assert_array_equal(found.boxes, whole.boxes)
        for ours, expected in zip(found.polygons, whole.polygons, strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert drawn.annotated == whole.annotated
    model.close()


def test_drawing_a_few_masks_at_a_time(
    checkpoints: CheckpointFolder, bus: ImageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks much the same."""
    model = TorchEngine().open(checkpoints("yolo11n-seg"))
    few = PredictParams(conf=0.0, max_det=4, imgsz=(320, 320))
    whole = answer(model, bus, few, annotate=True).annotated
    monkeypatch.setattr(segments, "_MAX_DRAWN_AT_ONCE", 1)

    parts = answer(model, bus, few, annotate=True).annotated

    assert whole is not None
    assert parts is not None
    first, second = (
        np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), 1), dtype=np.float32)
        for data in (whole, parts)
    )
    assert np.abs(first - second).mean() < 12
    model.close()


def test_memory_of_many_masks_is_bounded(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """300 masks at 1280 pixels would be two gigabytes."""
    model = TorchEngine().open(checkpoints("yolo11n-seg"))
    params = PredictParams(conf=0.0, iou=1.0, max_det=300, imgsz=(1280, 1280))

    with ActivationPeak([]) as peak:
        result = answer(model, bus, params)

    assert len(result.class_id) > 200
    assert peak.peak_bytes < 600 * 2**20
    model.close()


def test_too_many_masks_are_not_drawn(
    checkpoints: CheckpointFolder, bus: ImageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are needed at once for that; the message says what to lower."""
    model = TorchEngine().open(checkpoints("yolo11n-seg"))
    monkeypatch.setattr(segments, "_MAX_AT_ONCE", 3 * 320 * 320)
    monkeypatch.setattr(segments, "_MAX_KEPT", 10 * 320 * 240)

    with pytest.raises(InvalidParameterError, match="imgsz=320x256.*max_det to 9"):
        answer(model, bus, PARAMS, annotate=True)
    model.close()
