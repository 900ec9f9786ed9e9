"""Masks of many findings in a large picture, a few at a time.

Ultralytics scales all masks of a picture up at once: 300 of them at 1920 pixels take gigabytes.
Here each few become outlines, or bytes to draw, before the next; the answers are the same.
"""

from typing import Any

import torch
from ultralytics.engine.results import Results
from ultralytics.models.yolo.segment import SegmentationPredictor

from serve_app.errors import InvalidParameterError
from serve_app.types import FloatArray

_MAX_AT_ONCE = 2**24  # pixels of masks, which take four bytes each while they are made
_MAX_DRAWN_AT_ONCE = 2**26
_MAX_KEPT = 2**28  # pixels of masks to draw, which take a byte each


class Outlines:
    """What is left of masks: in the place of Ultralytics' `Masks`."""

    def __init__(self, xy: list[FloatArray]) -> None:
        self.xy = xy

    def cpu(self) -> "Outlines":
        """Return itself: it never was elsewhere."""
        return self


class BoundedSegmentationPredictor(SegmentationPredictor):
    """Ultralytics' own, in bounded memory. keep_masks: whether the masks will be drawn."""

    keep_masks = False

    def construct_result(  # type: ignore[override]
        self, pred: Any, img: Any, orig_img: Any, img_path: Any, proto: Any
    ) -> Any:
        """Return the result of one picture, as Ultralytics does for all of its masks at once."""
        construct: Any = super().construct_result
        pixels = int(img.shape[2] * img.shape[3])
        at_once = max(1, _MAX_AT_ONCE // pixels)
        if len(pred) <= at_once:
            return construct(pred, img, orig_img, img_path, proto)
        if self.keep_masks and len(pred) * pixels > _MAX_KEPT:
            raise InvalidParameterError(
                f"{len(pred)} masks at imgsz={img.shape[2]}x{img.shape[3]} are too many to draw: "
                f"lower max_det to {_MAX_KEPT // pixels}, or imgsz, or raise conf"
            )
        boxes, masks, outlines = [], [], []
        for few in pred.split(at_once):
            part = construct(few, img, orig_img, img_path, proto)
            boxes.append(part.boxes.data)
            if self.keep_masks:
                masks.append(part.masks.data)
            else:
                outlines.extend(part.masks.xy)
        model: Any = self.model
        whole: Any = Results(orig_img, path=img_path, names=model.names, boxes=torch.cat(boxes))
        if self.keep_masks:
            whole.update(masks=torch.cat(masks))
        else:
            whole.masks = Outlines(outlines)
        return whole


def plot_result(result: Any) -> Any:
    """Return the picture with its findings drawn, as `Results.plot` does."""
    height, width = result.orig_shape
    few = max(1, _MAX_DRAWN_AT_ONCE // (height * width))
    if result.masks is None or len(result) <= few:
        return result.plot()
    picture = None
    for start in range(0, len(result), few):
        picture = result[start : start + few].plot(img=picture, boxes=False)
    return result.plot(img=picture, masks=False)
