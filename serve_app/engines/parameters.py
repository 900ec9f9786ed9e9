"""Checks a request's parameters against what a model can do. Pure."""

from serve_app.engines.base import ModelInfo
from serve_app.errors import InvalidParameterError
from serve_app.types import MAX_DET, MAX_IMGSZ, MIN_IMGSZ, PredictParams


def check_params(params: PredictParams, info: ModelInfo, *, fixed_size: bool) -> tuple[int, int]:
    """Return the input size (height, width) in pixels that these parameters ask for.

    fixed_size: whether the model takes its own size only

    Raises:
        InvalidParameterError: a parameter is out of its range, which the message names
    """
    for name, value in (("conf", params.conf), ("iou", params.iou)):
        if not 0.0 <= value <= 1.0:
            raise InvalidParameterError(f"{name}={value} is out of range: expected 0 to 1")
    if not 1 <= params.max_det <= MAX_DET:
        raise InvalidParameterError(
            f"max_det={params.max_det} is out of range: expected 1 to {MAX_DET}"
        )
    _check_classes(params.classes, info)
    return _input_size(params.imgsz, info, fixed_size)


def _check_classes(classes: tuple[int, ...] | None, info: ModelInfo) -> None:
    for class_id in classes or ():
        if class_id not in info.names:
            raise InvalidParameterError(
                f"classes: {class_id} is none of this model's: expected 0 to {len(info.names) - 1}"
            )


def _input_size(
    asked: tuple[int, int] | None, info: ModelInfo, fixed_size: bool
) -> tuple[int, int]:
    """Round up to the stride, as Ultralytics does."""
    if asked is None:
        return info.imgsz
    for side in asked:
        if not MIN_IMGSZ <= side <= MAX_IMGSZ:
            raise InvalidParameterError(
                f"imgsz={side} is out of range: expected {MIN_IMGSZ} to {MAX_IMGSZ} pixels"
            )
    height, width = (-(-side // info.stride) * info.stride for side in asked)
    if fixed_size and (height, width) != info.imgsz:
        own = "x".join(map(str, info.imgsz))
        raise InvalidParameterError(
            f"imgsz={asked[0]}x{asked[1]} does not fit this model: its file takes {own} only; "
            "leave imgsz out, or export with dynamic=True"
        )
    return height, width
