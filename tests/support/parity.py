"""Compares our answers with those of Ultralytics."""

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.types import FloatArray, ImageResult


def assert_parity(ours: ImageResult, theirs: Any) -> None:
    """Assert that one picture's findings are Ultralytics', in the same order.

    Boxes IoU > 0.99, confidences within 1e-3, outlines and keypoints within a pixel.
    """
    assert ours.shape == tuple(theirs.orig_shape)
    if theirs.probs is not None:
        assert ours.class_id.tolist() == theirs.probs.top5
        np.testing.assert_allclose(ours.confidence, theirs.probs.top5conf.numpy(), atol=1e-3)
        return
    found = theirs.obb if theirs.obb is not None else theirs.boxes
    assert len(ours.class_id) == len(found)
    assert ours.class_id.tolist() == found.cls.int().tolist()
    np.testing.assert_allclose(ours.confidence, found.conf.numpy(), atol=1e-3)
    if theirs.obb is not None:
        assert ours.corners is not None
        np.testing.assert_allclose(ours.corners, theirs.obb.xyxyxyxy.numpy(), atol=1)
        return
    assert ours.boxes is not None
    assert (iou(ours.boxes, theirs.boxes.xyxy.numpy()) > 0.99).all()
    _assert_extras(ours, theirs)


def _assert_extras(ours: ImageResult, theirs: Any) -> None:
    if theirs.masks is not None:
        assert ours.polygons is not None
        assert [len(points) for points in ours.polygons] == [len(p) for p in theirs.masks.xy]
        for points, expected in zip(ours.polygons, theirs.masks.xy, strict=True):
            np.testing.assert_allclose(points, expected, atol=1)
    if theirs.keypoints is not None:
        assert ours.keypoints is not None
        expected = theirs.keypoints.data.numpy()
        assert ours.keypoints.shape == expected.shape
        np.testing.assert_allclose(ours.keypoints[..., :2], expected[..., :2], atol=1)
        np.testing.assert_allclose(ours.keypoints[..., 2:], expected[..., 2:], atol=1e-3)


def iou(first: FloatArray, second: FloatArray) -> npt.NDArray[np.float64]:
    """Return the overlap of (n, 4) boxes pair by pair; 1 where both are empty."""
    a, b = first.astype(float), second.astype(float)
    corner = np.maximum(a[:, :2], b[:, :2])
    size = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - corner, 0, None)
    shared = size.prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    same = np.abs(a - b).max(1, initial=0) < 1e-3
    return np.where(same, 1.0, shared / np.where(union > 0, union, 1.0))
