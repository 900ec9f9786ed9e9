"""Builds predict answers, equal to what Ultralytics' own `Results.summary()` gives."""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from serve_app.errors import ModelBrokenError
from serve_app.ingress.problems import encode
from serve_app.types import FloatArray, ImageResult, PredictResult

_DECIMALS = 5
_SPEEDS = ("preprocess", "inference", "postprocess")


def predict_content(result: PredictResult, *, normalize: bool, elapsed_s: float) -> dict[str, Any]:
    """Return the answer to a predict call as JSON values."""
    return {
        "images": [
            {
                "shape": [int(side) for side in image.shape],
                "results": findings(image, result.names, normalize=normalize),
                "speed": {name: round(float(image.speed_ms.get(name, 0.0)), 3) for name in _SPEEDS},
            }
            for image in result.images
        ],
        "metadata": {
            "imageCount": len(result.images),
            "functionTimeCall": round(elapsed_s, 6),
            "model": str(result.key),
            "task": str(result.task),
            "version": versions(),
        },
    }


def encode_answer(result: PredictResult, *, normalize: bool, elapsed_s: float) -> bytes:
    """Return the answer to a predict call as JSON.

    Raises:
        ModelBrokenError: the model's findings are not numbers
    """
    try:
        return encode(predict_content(result, normalize=normalize, elapsed_s=elapsed_s))
    except ValueError as error:
        raise ModelBrokenError(
            f"model {result.key} gives findings that are no numbers (NaN or infinity): "
            "its weights are damaged or overflow in this precision"
        ) from error


def findings(
    image: ImageResult, names: Mapping[int, str], *, normalize: bool
) -> list[dict[str, Any]]:
    """Return one entry for each finding, rounded as `Results.summary(decimals=5)` rounds."""
    height, width = image.shape if normalize else (1, 1)
    entries: list[dict[str, Any]] = []
    for index, (number, confidence) in enumerate(
        zip(image.class_id.tolist(), image.confidence.tolist(), strict=True)
    ):
        entry: dict[str, Any] = {
            "name": names.get(number, str(number)),
            "class": number,
            "confidence": round(confidence, _DECIMALS),
        }
        corners = _corners(image, index)
        if corners is not None:
            entry["box"] = _box(corners, width, height)
        if image.polygons is not None:
            entry["segments"] = _points(image.polygons[index], width, height)
        if image.keypoints is not None:
            entry["keypoints"] = _points(image.keypoints[index], width, height)
        entries.append(entry)
    return entries


def _corners(image: ImageResult, index: int) -> FloatArray | None:
    """Return the corners (k, 2) of a finding's box; two of an upright one, else four."""
    boxes = image.corners if image.corners is not None else image.boxes
    return None if boxes is None else boxes[index].reshape(-1, 2)


def _box(corners: FloatArray, width: int, height: int) -> dict[str, float]:
    box: dict[str, float] = {}
    for number, (x, y) in enumerate(corners.tolist(), start=1):
        box[f"x{number}"] = round(x / width, _DECIMALS)
        box[f"y{number}"] = round(y / height, _DECIMALS)
    return box


def _points(points: FloatArray, width: int, height: int) -> dict[str, list[float]]:
    # Divided in single precision and rounded in double, as Ultralytics does.
    listed = {
        "x": _rounded(points[:, 0] / np.float32(width)),
        "y": _rounded(points[:, 1] / np.float32(height)),
    }
    if points.shape[1] == 3:
        listed["visible"] = _rounded(points[:, 2])
    return listed


def _rounded(values: FloatArray) -> list[float]:
    rounded: list[float] = values.astype(np.float64).round(_DECIMALS).tolist()
    return rounded


def predict_headers(result: PredictResult) -> dict[str, str]:
    """Return the headers that tell which model answered and where the time went."""
    headers = {
        "X-Model-Id": str(result.key),
        "X-Model-Cold-Start": str(result.cold).lower(),
        "Server-Timing": _server_timing(result),
    }
    if result.load_ms is not None:
        headers["X-Model-Load-Time-Ms"] = f"{result.load_ms:.1f}"
    return headers


def _server_timing(result: PredictResult) -> str:
    phases = [("queue", result.queue_ms), ("load", result.load_ms or 0.0)]
    phases += [(name, _total(name, result.images)) for name in _SPEEDS]
    return ", ".join(f"{name};dur={duration_ms:.2f}" for name, duration_ms in phases)


def _total(name: str, images: Iterable[ImageResult]) -> float:
    return sum(float(image.speed_ms.get(name, 0.0)) for image in images)


@cache
def versions() -> dict[str, str]:
    """Return the versions of what computed the answer, as far as they are installed."""
    found = {}
    for package in ("serve_app", "ultralytics"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
