"""What the peers have in common: they read pictures and answer as serve_app does."""

from typing import Any

import cv2
import numpy as np

from serve_app.types import ImageArray


def decode(body: bytes) -> ImageArray:
    """Return the picture as (height, width, 3) BGR, with OpenCV as most users do."""
    image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("the body is no picture")
    return np.asarray(image, dtype=np.uint8)


def answer(result: Any) -> dict[str, Any]:  # noqa: ANN401 - Ultralytics' own, untyped
    """Return one Ultralytics result in the shape of serve_app's answers."""
    return {"images": [{"shape": list(result.orig_shape), "results": result.summary()}]}
