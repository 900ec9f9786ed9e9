"""Runs Ultralytics' own pre- and postprocessing around an engine's forward pass.

A predictor of Ultralytics keeps the state of its last call on itself, so each call here works on a
shallow copy of a template; nothing of a request outlives it.
"""

import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torchvision  # noqa: F401 - its presence decides which NMS Ultralytics uses
from ultralytics.engine.predictor import BasePredictor
from ultralytics.models.rtdetr import RTDETRPredictor
from ultralytics.models.yolo.classify import ClassificationPredictor
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.models.yolo.obb import OBBPredictor
from ultralytics.models.yolo.pose import PosePredictor

from serve_app.engines.base import Description
from serve_app.engines.guard import guarded
from serve_app.engines.parameters import check_params
from serve_app.engines.results import annotate_result, to_image_result
from serve_app.engines.segments import BoundedSegmentationPredictor
from serve_app.errors import InvalidImageError
from serve_app.types import ImageArray, ImageResult, PredictParams, Task

_MAX_SCALED_PIXELS = 50_000_000
_PREDICTORS: dict[Task, type[BasePredictor]] = {
    Task.DETECT: DetectionPredictor,
    Task.SEGMENT: BoundedSegmentationPredictor,
    Task.POSE: PosePredictor,
    Task.OBB: OBBPredictor,
    Task.CLASSIFY: ClassificationPredictor,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One open model as Ultralytics' predictors see it.

    forward: pixels (1, 3, height, width), RGB in 0..1 -> raw output
    format: "pt" or "onnx"
    fp16: whether the input is of half precision
    """

    description: Description
    device: torch.device
    forward: Callable[[torch.Tensor], Any]
    format: str
    fp16: bool = False


def predict(
    backend: Backend, image: ImageArray, params: PredictParams, *, annotate: bool
) -> ImageResult:
    """Answer for one picture (engine thread).

    Raises:
        InvalidParameterError: a parameter does not fit this model
        InvalidImageError: the picture is too long and narrow to be classified
        ModelBrokenError: the model fails on sound input
        OverloadedError: the memory ran out
    """
    imgsz = check_params(
        params, backend.description.info, fixed_size=not backend.description.dynamic
    )
    if backend.description.info.task is Task.CLASSIFY:
        _check_length(image, imgsz)
    return guarded(_answer, backend, image, params, imgsz, annotate)


def _answer(
    backend: Backend,
    image: ImageArray,
    params: PredictParams,
    imgsz: tuple[int, int],
    annotate: bool,
) -> ImageResult:
    with torch.inference_mode():
        predictor = _predictor(backend, params, imgsz)
        predictor.keep_masks = annotate
        result, speed_ms = _run(predictor, backend, image)
        drawn = annotate_result(result) if annotate else None
        return to_image_result(result, backend.description.info.task, speed_ms, drawn)


def _check_length(image: ImageArray, imgsz: tuple[int, int]) -> None:
    """Refuse pictures that would explode: the shorter side is scaled to the input size first."""
    height, width = image.shape[:2]
    pixels = max(imgsz) ** 2 * max(height, width) / min(height, width)
    if pixels > _MAX_SCALED_PIXELS:
        raise InvalidImageError(
            f"the picture of {width}x{height} pixels is too long and narrow to be classified at "
            f"{max(imgsz)} pixels; crop it"
        )


def warm_up(backend: Backend) -> None:
    """Run one forward pass at the model's own input size (engine thread)."""
    _template(backend.description.info.task, backend.description.rtdetr)
    height, width = backend.description.info.imgsz
    dtype = torch.float16 if backend.fp16 else torch.float32
    with torch.inference_mode():
        backend.forward(torch.zeros(1, 3, height, width, dtype=dtype, device=backend.device))
        _synchronize(backend.device)


def _run(predictor: Any, backend: Backend, image: ImageArray) -> tuple[Any, Mapping[str, float]]:
    predictor.setup_source(image)
    predictor.batch = next(iter(predictor.dataset))
    originals = predictor.batch[1]
    started = time.perf_counter()
    pixels = predictor.preprocess(originals)
    _synchronize(backend.device)
    prepared = time.perf_counter()
    raw = backend.forward(pixels)
    _synchronize(backend.device)
    inferred = time.perf_counter()
    (result,) = predictor.postprocess(raw, pixels, originals)
    result = result.cpu()
    finished = time.perf_counter()
    return result, {
        "preprocess": (prepared - started) * 1e3,
        "inference": (inferred - prepared) * 1e3,
        "postprocess": (finished - inferred) * 1e3,
    }


def _predictor(backend: Backend, params: PredictParams, imgsz: tuple[int, int]) -> Any:
    template = _template(backend.description.info.task, backend.description.rtdetr)
    predictor = copy.copy(template)
    predictor.args = copy.copy(template.args)
    predictor.args.conf = params.conf
    predictor.args.iou = params.iou
    predictor.args.max_det = params.max_det
    predictor.args.classes = None if params.classes is None else list(params.classes)
    predictor.args.imgsz = list(imgsz)
    predictor.device = backend.device
    predictor.model = _facade(backend)
    return predictor


@functools.cache
def _template(task: Task, rtdetr: bool) -> Any:
    kind: Any = RTDETRPredictor if rtdetr else _PREDICTORS[task]
    return kind(overrides={"mode": "predict", "rect": True, "save": False, "verbose": False})


def _facade(backend: Backend) -> SimpleNamespace:
    return SimpleNamespace(
        names=dict(backend.description.info.names),
        stride=backend.description.info.stride,
        device=backend.device,
        format=backend.format,
        end2end=backend.description.end2end,
        fp16=backend.fp16,
        dynamic=backend.description.dynamic,
        kpt_shape=backend.description.kpt_shape,
        channels=3,
        model=SimpleNamespace(transforms=backend.description.transforms),
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
