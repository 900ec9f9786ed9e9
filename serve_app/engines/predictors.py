"""Runs Ultralytics' own pre- and postprocessing around an engine's forward pass.

A predictor of Ultralytics keeps the state of its last call on itself, so each call here works on a
shallow copy of a template; nothing of a request outlives it. Pictures of one batch share the
forward pass only: each is pre- and postprocessed alone, with its own parameters.
"""

import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import torchvision  # noqa: F401 - its presence decides which NMS Ultralytics uses
from torch.utils._pytree import tree_map_only
from ultralytics.engine.predictor import BasePredictor
from ultralytics.models.rtdetr import RTDETRPredictor
from ultralytics.models.yolo.classify import ClassificationPredictor
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.models.yolo.obb import OBBPredictor
from ultralytics.models.yolo.pose import PosePredictor

from serve_app.engines.base import Answer, Description, ModelInput
from serve_app.engines.guard import guarded
from serve_app.engines.parameters import check_params
from serve_app.engines.profile import BatchProfile, measure
from serve_app.engines.results import annotate_result, to_image_result
from serve_app.engines.segments import BoundedSegmentationPredictor
from serve_app.errors import InvalidImageError, ServeAppError
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

    forward: pixels (batch, 3, height, width), RGB in 0..1 -> raw output
    format: "pt" or "onnx"
    fp16: whether the input is of half precision
    batches: whether it takes more than one picture at once
    """

    description: Description
    device: torch.device
    forward: Callable[[torch.Tensor], Any]
    format: str
    fp16: bool = False
    batches: bool = True


def preprocess(
    backend: Backend, image: ImageArray, params: PredictParams, *, annotate: bool
) -> ModelInput:
    """Turn a picture into a model's input (decoder thread).

    Raises:
        InvalidParameterError: a parameter does not fit this model
        InvalidImageError: the picture is too long and narrow to be classified
    """
    imgsz = check_params(
        params, backend.description.info, fixed_size=not backend.description.dynamic
    )
    if backend.description.info.task is Task.CLASSIFY:
        _check_length(image, imgsz)
    return guarded(_preprocess, backend, image, params, imgsz, annotate)


def predict(backend: Backend, inputs: Sequence[ModelInput]) -> list[Answer]:
    """Answer for inputs of one shape (stream).

    Raises:
        ModelBrokenError: the model fails on sound input
        OverloadedError: the memory ran out
    """
    return guarded(_predict, backend, inputs)


def _preprocess(
    backend: Backend,
    image: ImageArray,
    params: PredictParams,
    imgsz: tuple[int, int],
    annotate: bool,
) -> ModelInput:
    started = time.perf_counter()
    with torch.inference_mode():
        predictor = _predictor(backend, params, imgsz)
        predictor.keep_masks = annotate
        predictor.setup_source(image)
        predictor.batch = next(iter(predictor.dataset))
        pixels = predictor.preprocess(predictor.batch[1])
        _synchronize(backend.device)
    task = backend.description.info.task
    postprocess = functools.partial(_postprocess, predictor, pixels, task, annotate)
    return ModelInput(pixels, postprocess, (time.perf_counter() - started) * 1e3)


def _predict(backend: Backend, inputs: Sequence[ModelInput]) -> list[Answer]:
    started = time.perf_counter()
    with torch.inference_mode():
        pixels = [model_input.pixels for model_input in inputs]
        raw = backend.forward(pixels[0] if len(pixels) == 1 else torch.cat(pixels))
        _synchronize(backend.device)
        inference_ms = (time.perf_counter() - started) * 1e3
        alone = (_alone(raw, index, len(inputs)) for index in range(len(inputs)))
        return [
            _finish(one, output, inference_ms) for one, output in zip(inputs, alone, strict=True)
        ]


def _finish(model_input: ModelInput, raw: Any, inference_ms: float) -> Answer:
    try:
        result, postprocess_ms = guarded(model_input.postprocess, raw)
    except ServeAppError as error:  # this picture's alone
        return error
    speed_ms = {
        "preprocess": model_input.preprocess_ms,
        "inference": inference_ms,
        "postprocess": postprocess_ms,
    }
    return replace(result, speed_ms=speed_ms)


def _alone(raw: Any, index: int, count: int) -> Any:
    """Return what the model would have put out for one picture of a batch of `count`."""
    if count == 1:
        return raw
    return tree_map_only(
        torch.Tensor, lambda t: t[index : index + 1] if t.ndim and t.shape[0] == count else t, raw
    )


def _postprocess(
    predictor: Any, pixels: torch.Tensor, task: Task, annotate: bool, raw: Any
) -> tuple[ImageResult, float]:
    """Return the findings of one picture, and the milliseconds that finding them took."""
    started = time.perf_counter()
    (found,) = predictor.postprocess(raw, pixels, predictor.batch[1])
    found = found.cpu()
    postprocess_ms = (time.perf_counter() - started) * 1e3
    drawn = annotate_result(found) if annotate else None
    return to_image_result(found, task, {}, drawn), postprocess_ms


def _check_length(image: ImageArray, imgsz: tuple[int, int]) -> None:
    """Refuse pictures that would explode: the shorter side is scaled to the input size first."""
    height, width = image.shape[:2]
    pixels = max(imgsz) ** 2 * max(height, width) / min(height, width)
    if pixels > _MAX_SCALED_PIXELS:
        raise InvalidImageError(
            f"the picture of {width}x{height} pixels is too long and narrow to be classified at "
            f"{max(imgsz)} pixels; crop it"
        )


def run_once(backend: Backend, batch: int = 1) -> float:
    """Run a forward pass at the model's own input size; return its seconds (stream)."""
    _template(backend.description.info.task, backend.description.rtdetr)
    height, width = backend.description.info.imgsz
    dtype = torch.float16 if backend.fp16 else torch.float32
    with torch.inference_mode():
        pixels = torch.zeros(batch, 3, height, width, dtype=dtype, device=backend.device)
        started = time.perf_counter()
        backend.forward(pixels)
        _synchronize(backend.device)
        return time.perf_counter() - started


def time_batches(backend: Backend) -> BatchProfile:
    """Find how large batches should be, with a model that has run before (stream)."""
    if not backend.batches:
        return BatchProfile((run_once(backend),))
    return measure(lambda batch: run_once(backend, batch))


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
        # Not the whole device, which may not be waited for while a pass is being recorded.
        torch.cuda.current_stream(device).synchronize()
