"""Reads a `.pt` checkpoint, which is untrusted code, into a module ready to predict.

Two readings: `read_model` with the weights, and `read_structure` without, on the meta device, for
which nothing but the structure is read from disk. Both go through torch's restricted unpickler
with the allow-list of Ultralytics; a file that names or calls anything else is refused by name.
What is declared is bounded before it is unfolded: a small file must not take much of anything.
"""

import logging
import pickle
import types
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.autobackend import check_class_names

from serve_app.engines.archive import check_archive, read_globals
from serve_app.engines.base import Description, ModelInfo
from serve_app.engines.guard import is_blameless
from serve_app.engines.pickles import check_calls
from serve_app.engines.storages import read_plain_tensors, read_weights
from serve_app.engines.text import printable
from serve_app.errors import ModelBrokenError
from serve_app.types import Task

logger = logging.getLogger(__name__)

_TASKS: dict[type[nn.Module], Task] = {
    tasks.DetectionModel: Task.DETECT,
    tasks.RTDETRDetectionModel: Task.DETECT,
    tasks.SegmentationModel: Task.SEGMENT,
    tasks.PoseModel: Task.POSE,
    tasks.OBBModel: Task.OBB,
    tasks.ClassificationModel: Task.CLASSIFY,
}
_CACHES = {"anchors", "strides", "shape", "valid_mask", "shapes"}
_DAMAGED = "the checkpoint is truncated or corrupt; copy it again"
_DEFAULT_IMGSZ = 640
_MAX_IMGSZ = 8192
_MAX_EXPANSION = 8
_MAX_PARTS = 300_000  # ten times the largest networks
_MAX_DEPTH = 100
_MAX_WEIGHT = 2**22
_STORES = ("_parameters", "_buffers")
_MAX_CLASSES = 10_000
_MAX_NAME_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as a fused fp32 module in evaluation mode."""

    module: nn.Module
    description: Description


def read_model(path: Path) -> Checkpoint:
    """Read the checkpoint with its weights, on the CPU (loader thread).

    Raises:
        ModelBrokenError: the file is corrupt, unsafe or no YOLO model
    """
    return _read(path, "cpu")


def read_structure(path: Path) -> Checkpoint:
    """Read the checkpoint with its parameters on the meta device: no weights are read.

    Raises:
        ModelBrokenError: the file is corrupt, unsafe or no YOLO model
    """
    return _read(path, "meta")


def _read(path: Path, device: str) -> Checkpoint:
    try:
        content = _unpickle(path)
        module = _choose_model(content)
        task = _task_of(module)
        _check_parts(module)
        for sub in module.modules():
            _forget_last_image(sub)
        _check_size(module, path.stat().st_size)
        read_plain_tensors(module, path)
        if device != "meta":
            read_weights(module, path)
        module = _fuse(module, device)
        return Checkpoint(module, _describe(module, task, content))
    except ModelBrokenError:
        raise
    except Exception as error:
        if is_blameless(error):
            raise
        logger.info("checkpoint refused", exc_info=error)
        raise ModelBrokenError(
            f"the checkpoint is no usable YOLO model ({type(error).__name__}); "
            "train or export it again with a current Ultralytics"
        ) from None


def _unpickle(path: Path) -> Any:
    """Load, without numbers, through the restricted unpickler, which allows known names only."""
    check_archive(path)
    names = _scan(path)
    if "ultralytics.nn.text_model.CLIP" in names:
        raise ModelBrokenError(f"the model needs a text encoder; {_supported()}")
    # Entering allows, for the life of the process and under Ultralytics' own lock, those model
    # classes that this file names; the rest marks this thread only, so loads may run at once.
    # `torch_safe_load` would patch sys.modules around the whole load, and hold a lock over it.
    with tasks._SafeLoad.loading(path):
        _refuse_foreign(names - (tasks._SafeLoad._registry or {}).keys())
        check_calls(_read_pickle(path))
        try:
            return torch.load(path, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            logger.info("checkpoint refused", exc_info=error)
            raise ModelBrokenError(
                "the checkpoint asks for something outside a YOLO model; nothing of it was run"
            ) from None
        except (EOFError, RuntimeError) as error:
            if is_blameless(error):
                raise
            logger.info("checkpoint unreadable", exc_info=error)
            raise ModelBrokenError(_DAMAGED) from None


def _read_pickle(path: Path) -> bytes:
    """Read the pickle as `torch.load` will: two readers of archives may see two pickles."""
    data: bytes = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    return data


def _scan(path: Path) -> set[str]:
    """Return the names in the pickle that torch does not allow by itself."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # opcodes that torch.save never writes, or an unreadable archive
        if is_blameless(error):
            raise
        logger.info("checkpoint unreadable", exc_info=error)
    known = {"torch", "collections", "ultralytics", "numpy", "pathlib", "torchvision"}
    _refuse_foreign({name for name in read_globals(path) if name.split(".", 1)[0] not in known})
    raise ModelBrokenError(_DAMAGED)


def _refuse_foreign(names: Iterable[str]) -> None:
    """Refuse a checkpoint that imports names outside the allow-list, naming them."""
    foreign = sorted(names)
    if not foreign:
        return
    if any(name.startswith(("models.", "utils.")) for name in foreign):
        raise ModelBrokenError(
            f"the checkpoint was made by an older repository than Ultralytics (it names "
            f"{printable(foreign[0])}); retrain it with Ultralytics, or register its ONNX export"
        )
    raise ModelBrokenError(
        f"the checkpoint names {', '.join(map(printable, foreign[:5]))}, which is no part of a "
        "YOLO model and could run code; nothing of it was run"
    )


def _choose_model(content: Any) -> nn.Module:
    """Return the averaged weights when the training left them, as Ultralytics does."""
    if not isinstance(content, dict):
        raise ModelBrokenError("the file is a PyTorch file, but holds no YOLO model")
    if content.get("modelopt"):
        raise ModelBrokenError("the checkpoint is quantization-aware; register its ONNX export")
    for name in ("ema", "model"):
        if isinstance(content.get(name), nn.Module):
            module: nn.Module = content[name]
            return module
    raise ModelBrokenError(
        "the file holds tensors but no YOLO model; register the .pt that training wrote, "
        "not a state dict"
    )


def _task_of(module: nn.Module) -> Task:
    try:
        return _TASKS[type(module)]
    except KeyError:
        raise ModelBrokenError(
            f"{printable(type(module).__name__)} is not served; {_supported()}"
        ) from None


def _supported() -> str:
    return f"supported tasks are {', '.join(Task)}"


def _forget_last_image(module: nn.Module) -> None:
    """Drop the grids that a head keeps of its last image, so that equal structures look equal."""
    for name in _CACHES & module.__dict__.keys():
        if hasattr(type(module), name):
            del module.__dict__[name]


def _check_parts(module: nn.Module) -> None:
    """Refuse structures that repeat themselves: each step down may double what there is to walk.

    What a description of the structure would tell is walked, as often as that would tell it.
    """
    waiting: list[tuple[Any, int]] = [(module, 0)]
    seen = weight = 0
    while waiting:
        part, depth = waiting.pop()
        seen += 1
        weight += _weigh(part)
        waiting.extend((inner, depth + 1) for inner in _inside(part))
        if seen + len(waiting) > _MAX_PARTS or depth > _MAX_DEPTH:
            raise ModelBrokenError("the checkpoint's structure is larger than any YOLO model's")
        if weight > _MAX_WEIGHT:
            raise ModelBrokenError(
                f"the checkpoint keeps more than {_MAX_WEIGHT} numbers and characters outside its "
                "parameters, which is more than any YOLO model does"
            )


def _inside(part: Any) -> Iterable[Any]:
    """Return what is to be walked inside a part; of parameters and buffers, the names."""
    if isinstance(part, nn.Module):
        plain = {n: value for n, value in part.__dict__.items() if n not in _STORES}
        return (*plain, *plain.values(), *part._parameters, *part._buffers)
    if isinstance(part, dict):
        return (*part.keys(), *part.values())
    if isinstance(part, list | tuple | set | frozenset):
        return part
    if isinstance(part, torch.Tensor | type | types.FunctionType | Enum):
        return ()
    return getattr(part, "__dict__", {}).values()  # such as the transforms of a classifier


def _weigh(part: Any) -> int:
    """Return how many numbers and characters a description would tell of this part alone."""
    if isinstance(part, str | bytes):
        return len(part)
    if isinstance(part, torch.Tensor):
        return part.numel() + part.dim()
    if isinstance(part, nn.Module):  # the shapes of its tensors
        tensors: Any = (*part._parameters.values(), *part._buffers.values())
        return sum(tensor.dim() for tensor in tensors if tensor is not None)
    return 0


def _check_size(module: nn.Module, file_bytes: int) -> None:
    """Refuse models that would unfold to far more memory than their file could hold."""
    declared = sum(t.numel() * 4 for t in (*module.parameters(), *module.buffers()))
    if declared > _MAX_EXPANSION * file_bytes:
        raise ModelBrokenError(
            f"the checkpoint declares {declared} bytes of weights in {file_bytes} bytes of file"
        )


def _fuse(module: Any, device: str) -> nn.Module:
    with torch.no_grad(), torch.device(device):  # fusing makes new layers
        fused: nn.Module = module.float().fuse(verbose=False).eval()
    head = module.model[-1]
    for name, value in (("max_det", 300), ("agnostic_nms", False)):
        # What `predict` sets on end-to-end heads before each run, for up to 300 findings.
        if hasattr(type(head), name):
            setattr(head, name, value)
    for sub in module.modules():
        if hasattr(sub, "inplace"):
            sub.inplace = True
    return fused


def _describe(module: nn.Module, task: Task, content: dict[str, Any]) -> Description:
    attributes: Any = module
    stride = max(int(attributes.stride.max()), 32)
    kpt_shape = tuple(attributes.kpt_shape) if task is Task.POSE else None
    arguments = content.get("train_args")
    imgsz = arguments.get("imgsz") if isinstance(arguments, dict) else None
    info = ModelInfo(
        task=task,
        names=check_names(attributes.names),
        imgsz=usable_imgsz(imgsz, stride),
        stride=stride,
    )
    return Description(
        dynamic=True,
        info=info,
        end2end=bool(getattr(module, "end2end", False)),
        rtdetr=type(module) is tasks.RTDETRDetectionModel,
        kpt_shape=kpt_shape,
        transforms=getattr(module, "transforms", None) if task is Task.CLASSIFY else None,
    )


def check_names(names: Any) -> dict[int, str]:
    """Return class names by their ids.

    Raises:
        ModelBrokenError: there are too many, or they are too long
    """
    if not isinstance(names, dict | list) or len(names) > _MAX_CLASSES:
        raise ModelBrokenError(f"the model's class names are none, or more than {_MAX_CLASSES}")
    texts = names.values() if isinstance(names, dict) else names
    plain = all(isinstance(text, str | int | float) for text in texts)
    if not plain or any(len(str(text)) > _MAX_NAME_CHARACTERS for text in texts):
        raise ModelBrokenError(
            f"a class name of the model is no text of up to {_MAX_NAME_CHARACTERS} characters"
        )
    checked: dict[int, str] = check_class_names(names)
    return checked


def usable_imgsz(imgsz: object, stride: int) -> tuple[int, int]:
    """Return (height, width) in pixels, multiples of `stride`; 640 when `imgsz` is unusable."""
    sides: list[Any] = list(imgsz) if isinstance(imgsz, list | tuple) else [imgsz]
    if len(sides) not in (1, 2) or not all(
        isinstance(side, int) and 0 < side <= _MAX_IMGSZ for side in sides
    ):
        sides = [_DEFAULT_IMGSZ]
    height, width = (max(-(-int(side) // stride), 1) * stride for side in (sides * 2)[:2])
    return height, width
