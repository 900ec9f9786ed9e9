"""Turns Ultralytics' results into our own values, and draws them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from ultralytics.utils import USER_CONFIG_DIR, plotting

from serve_app.engines.segments import plot_result
from serve_app.types import FloatArray, ImageResult, Task

_JPEG_QUALITY = 90


def to_image_result(
    result: Any, task: Task, speed_ms: Mapping[str, float], annotated: bytes | None
) -> ImageResult:
    """Return what a `Results` on the CPU holds, in its order."""
    height, width = result.orig_shape
    common: dict[str, Any] = {
        "shape": (int(height), int(width)),
        "speed_ms": dict(speed_ms),
        "annotated": annotated,
    }
    if result.probs is not None:
        return ImageResult(
            class_id=np.asarray(result.probs.top5, dtype=np.int64),
            confidence=_floats(result.probs.top5conf),
            **common,
        )
    found = result.obb if result.obb is not None else result.boxes
    common["class_id"] = found.cls.numpy().astype(np.int64)
    common["confidence"] = _floats(found.conf)
    if result.obb is not None:
        return ImageResult(corners=_floats(result.obb.xyxyxyxy).reshape(-1, 4, 2), **common)
    if result.keypoints is not None:
        common["keypoints"] = _floats(result.keypoints.data)
    if task is Task.SEGMENT:
        outlines = () if result.masks is None else result.masks.xy
        common["polygons"] = tuple(_polygon(points) for points in outlines)
    return ImageResult(boxes=_floats(result.boxes.xyxy), **common)


def annotate_result(result: Any) -> bytes:
    """Return a JPEG of the picture with its findings drawn, as `Results.plot` does."""
    encoded, data = cv2.imencode(
        ".jpg", plot_result(result), [int(cv2.IMWRITE_JPEG_QUALITY), _JPEG_QUALITY]
    )
    if not encoded:
        raise RuntimeError("the drawn picture could not be encoded")
    return data.tobytes()


def _floats(tensor: Any) -> FloatArray:
    # Copied: the arrays outlive the call, and must not keep the whole output tensor alive.
    return np.array(tensor.numpy(), dtype=np.float32)


def _polygon(points: Any) -> FloatArray:
    return np.array(points, dtype=np.float32).reshape(-1, 2)


def _find_font(font: str = "Arial.ttf") -> str:
    """Return a font file that is here already, where Ultralytics would download Arial."""
    own = USER_CONFIG_DIR / os.path.basename(font)
    if own.exists():
        return str(own)
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


# Drawing must never reach for the network; Ultralytics looks this name up at each drawing.
setattr(plotting, "check_font", _find_font)  # noqa: B010 - not exported
