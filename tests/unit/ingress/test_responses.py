"""Contract: our findings equal Ultralytics' own `Results.summary()`, task by task."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results

from serve_app.ingress.responses import findings
from serve_app.types import ImageResult

HEIGHT, WIDTH = 480, 641
NAMES = {0: "person", 1: "bicycle", 2: "car", 3: "dog", 4: "cat", 5: "bus"}


def results(**parts: Any) -> Results:  # noqa: ANN401 (each part is a tensor)
    """Return Ultralytics' results for a blank picture."""
    return Results(np.zeros((HEIGHT, WIDTH, 3), np.uint8), "a.jpg", NAMES, **parts)


def rows(count: int, seed: int) -> torch.Tensor:
    """Return random (x1, y1, x2, y2, confidence, class) rows."""
    made = torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))
    made[:, :4] *= 400
    made[:, 5] = torch.arange(count) % len(NAMES)
    return made


def image(data: torch.Tensor) -> ImageResult:
    """Return our result of the same rows: confidence and class are their last two columns."""
    return ImageResult(
        shape=(HEIGHT, WIDTH),
        class_id=data[:, -1].numpy().astype(np.int64),
        confidence=data[:, -2].numpy(),
    )


normalized = pytest.mark.parametrize("normalize", [False, True])


@normalized
@pytest.mark.parametrize("count", [0, 1, 20])
def test_detect(normalize: bool, count: int) -> None:
    """Boxes of two corners."""
    data = rows(count, 1)
    expected = results(boxes=data).summary(normalize=normalize)
    ours = findings(replace(image(data), boxes=data[:, :4].numpy()), NAMES, normalize=normalize)
    assert ours == expected
    assert [list(entry) for entry in ours] == [list(entry) for entry in expected]


@normalized
def test_segment(normalize: bool) -> None:
    """Boxes and outlines."""
    data = rows(3, 2)
    masks = torch.zeros(3, HEIGHT, WIDTH)
    for index in range(3):
        masks[index, 50 + index : 200, 30 * index : 300] = 1
    reference = results(boxes=data, masks=masks)
    assert reference.masks is not None
    ours = replace(image(data), boxes=data[:, :4].numpy(), polygons=tuple(reference.masks.xy))
    assert findings(ours, NAMES, normalize=normalize) == reference.summary(normalize=normalize)


@normalized
@pytest.mark.parametrize("values", [2, 3])
def test_pose(normalize: bool, values: int) -> None:
    """Boxes and joints, with and without visibility."""
    data = rows(4, 3)
    keypoints = torch.rand(4, 17, values, generator=torch.Generator().manual_seed(4)) * 400
    reference = results(boxes=data, keypoints=keypoints.clone())
    assert reference.keypoints is not None
    ours = replace(
        image(data), boxes=data[:, :4].numpy(), keypoints=np.asarray(reference.keypoints.data)
    )
    assert findings(ours, NAMES, normalize=normalize) == reference.summary(normalize=normalize)


@normalized
def test_obb(normalize: bool) -> None:
    """Boxes of four corners."""
    data = torch.rand(5, 7, generator=torch.Generator().manual_seed(5))
    data[:, :4] *= 300
    data[:, 6] = torch.arange(5)
    reference = results(obb=data)
    assert reference.obb is not None
    ours = replace(image(data), corners=np.asarray(reference.obb.xyxyxyxy))
    assert findings(ours, NAMES, normalize=normalize) == reference.summary(normalize=normalize)


def test_classify() -> None:
    """The five best classes, without boxes."""
    probabilities = torch.softmax(torch.arange(6, dtype=torch.float32), 0)
    reference = results(probs=probabilities)
    assert reference.probs is not None
    ours = ImageResult(
        shape=(HEIGHT, WIDTH),
        class_id=np.array(reference.probs.top5, np.int64),
        confidence=np.asarray(reference.probs.top5conf),
    )
    assert findings(ours, NAMES, normalize=False) == reference.summary()


def test_a_class_without_a_name_is_called_by_its_number() -> None:
    """A checkpoint may name fewer classes than it has."""
    data = rows(1, 6)
    ours = replace(image(data), boxes=data[:, :4].numpy())
    assert findings(ours, {}, normalize=False)[0]["name"] == "0"
