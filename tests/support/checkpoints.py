"""Random-weight checkpoints, saved the way Ultralytics saves them."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import serve_app.engines  # noqa: F401 - settles the environment before Ultralytics is imported
from serve_app.types import ImageArray

import torch  # isort: skip
import ultralytics  # isort: skip
from ultralytics.models import RTDETR, YOLO  # isort: skip
from ultralytics.nn import tasks  # isort: skip

ASSETS = Path(str(ultralytics.__file__)).parent / "assets"
BUS = ASSETS / "bus.jpg"
ZIDANE = ASSETS / "zidane.jpg"

_TRUNK = [
    [-1, 1, "Conv", [16, 3, 2]],
    [-1, 1, "Conv", [24, 3, 2]],
    [-1, 1, "Conv", [32, 3, 2]],
    [-1, 1, "Conv", [48, 3, 2]],
    [-1, 1, "Conv", [64, 3, 2]],
]

STRUCTURES: Mapping[str, Mapping[str, Any]] = {
    # Every part of the big RT-DETR, small.
    "tiny-rtdetr": {
        "nc": 7,
        "backbone": [*_TRUNK, [-1, 1, "AIFI", [128, 4]]],
        "head": [[[2, 3, 5], 1, "RTDETRDecoder", ["nc", 64, 50, 4, 4, 2, 128]]],
    },
    "tiny-detect": {
        "nc": 5,
        "backbone": _TRUNK,
        "head": [[[2, 3, 4], 1, "Detect", ["nc"]]],
    },
    "tiny-end2end": {
        "nc": 5,
        "end2end": True,
        "reg_max": 1,
        "backbone": [*_TRUNK, [-1, 1, "C2f", [64, False]]],
        "head": [[[2, 3, 5], 1, "Detect", ["nc"]]],
    },
}
"""Networks of a tenth of a million parameters, for tests that open many."""


def build(
    architecture: str | Mapping[str, Any],
    *,
    seed: int = 0,
    imgsz: int = 160,
    classes: int | None = None,
) -> Any:
    """Return a random net of `architecture` that finds things although it was never trained.

    architecture: a name of Ultralytics such as "yolo11n-seg", or a structure of a detector
    """
    torch.manual_seed(seed)
    untyped: Any = tasks
    if isinstance(architecture, Mapping):
        rtdetr = architecture["head"][-1][2] == "RTDETRDecoder"
        kind = untyped.RTDETRDetectionModel if rtdetr else untyped.DetectionModel
        module = kind(deepcopy(dict(architecture)), verbose=False)
        module.task = "detect"
    else:
        whole: Any = (RTDETR if "rtdetr" in architecture else YOLO)(f"{architecture}.yaml")
        module = whole.model
        if classes is not None:
            module = type(module)({**module.yaml, "nc": classes}, verbose=False)
        module.task = whole.task
    _excite(module, seed)
    module.eval()
    if module.task == "segment":
        _balance_masks(module, seed)
    module.args = {"imgsz": imgsz, "task": module.task}
    return module


def _excite(module: Any, seed: int) -> None:
    """Shake batch norms and biases so that outputs vary and findings have some score."""
    generator = torch.Generator().manual_seed(seed)
    for sub in module.modules():
        if isinstance(sub, torch.nn.BatchNorm2d):
            assert sub.running_mean is not None
            assert sub.running_var is not None
            size = sub.running_mean.shape
            sub.running_mean.copy_(torch.randn(size, generator=generator) * 0.1)
            sub.running_var.copy_(torch.rand(size, generator=generator) * 0.5 + 0.3)
            sub.weight.data.copy_(torch.rand(size, generator=generator) + 0.8)
            sub.bias.data.copy_(torch.randn(size, generator=generator) * 0.2)
    head = module.model[-1]
    for name in ("cv3", "one2one_cv3"):
        for branch in getattr(head, name, None) or ():
            bias = branch[-1].bias
            bias.data.copy_(torch.randn(bias.shape, generator=generator) - 2.0)


def _balance_masks(module: Any, seed: int) -> None:
    """Mix the mask prototypes so that on a photograph about half of each box is inside."""
    photo = cv2.resize(np.asarray(cv2.imread(str(BUS))), (160, 224))
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        mean = module(pixels)[0][1].mean((0, 2, 3))
    mixture = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
    mixture -= mean * (mixture @ mean) / (mean @ mean)
    head = module.model[-1]
    for branch in (*(head.cv4 or ()), *(getattr(head, "one2one_cv4", None) or ())):
        branch[-1].weight.data.zero_()
        branch[-1].bias.data.copy_(mixture)


def save(module: Any, path: Path, *, stripped: bool = True) -> Path:
    """Save as a training run does: half precision; unstripped with `ema` and optimizer state."""
    module = deepcopy(module)
    content: dict[str, Any] = {
        "date": "2026-01-01T00:00:00",
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "train_args": dict(module.args),
        "epoch": -1,
    }
    if stripped:
        content |= {"model": module.half(), "ema": None, "optimizer": None}
    else:
        ema = deepcopy(module).half()
        content |= {"model": None, "ema": ema, "optimizer": _optimizer_state(module)}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def _optimizer_state(module: Any) -> dict[str, Any]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def checkpoint(path: Path, architecture: str | Mapping[str, Any], **options: Any) -> Path:
    """Build and save in one go; see `build`."""
    return save(build(architecture, **options), path)


def reference(path: Path, source: Path | ImageArray, **options: Any) -> Any:
    """Return what Ultralytics itself answers for one picture."""
    model: Any = YOLO(str(path))
    picture = str(source) if isinstance(source, Path) else source
    (result,) = model.predict(picture, verbose=False, **options)
    return result


class CheckpointFolder:
    """Checkpoints made on first asking and kept for the test session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, architecture: str, *, seed: int = 0, imgsz: int = 160) -> Path:
        """Return the file of a random net; `architecture` may also be a key of `STRUCTURES`."""
        # The stem must not be a published name, which Ultralytics would rather download.
        path = self._folder / f"net-{architecture}-{seed}-{imgsz}.pt"
        if not path.exists():
            structure = STRUCTURES.get(architecture, architecture)
            checkpoint(path, structure, seed=seed, imgsz=imgsz)
        return path
