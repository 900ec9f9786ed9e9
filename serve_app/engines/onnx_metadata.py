"""Reads what Ultralytics writes into an `.onnx` file, without loading its graph."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultralytics.nn.backends.base import BaseBackend

from serve_app.engines.base import Description, ModelInfo
from serve_app.engines.checkpoint import check_names, usable_imgsz
from serve_app.engines.text import printable
from serve_app.errors import ModelBrokenError
from serve_app.types import Task

_MAX_FIELD_CHARACTERS = 2**20
_CHUNK_BYTES = 2**20


def read_metadata(path: Path) -> Description:
    """Return what Ultralytics wrote into the file, read without loading it.

    Raises:
        ModelBrokenError: there is none, or not what an export has
        OSError: the file cannot be read
    """
    raw: Mapping[str, str] = BaseBackend.read_metadata(path)
    if not {"task", "names", "stride", "imgsz"} <= raw.keys():
        _read_through(path)
        raise ModelBrokenError(
            "the ONNX file is truncated or was not exported by Ultralytics: it lacks the metadata "
            "task, names, stride and imgsz; export it with `YOLO('model.pt').export(format='onnx')`"
        )
    if raw["task"] not in set(Task):
        task = printable(raw["task"])
        raise ModelBrokenError(
            f"the task '{task}' is not served; supported tasks are {', '.join(Task)}"
        )
    try:
        return parse_metadata(raw)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        raise ModelBrokenError("the ONNX file's metadata are malformed; export it again") from None


def _read_through(path: Path) -> None:
    """Raise what the disk or the system says of the file; Ultralytics takes it for no metadata."""
    with path.open("rb") as file:
        while file.read(_CHUNK_BYTES):
            pass


def parse_metadata(raw: Mapping[str, str]) -> Description:
    """Return the metadata of their texts; raise ValueError and the like when malformed. Pure."""
    arguments = _literal(raw.get("args", "{}"))
    stride = int(raw["stride"])
    dynamic = bool(arguments.get("dynamic", False))
    kpt_shape = _literal(raw["kpt_shape"]) if "kpt_shape" in raw else None
    info = ModelInfo(
        task=Task(raw["task"]),
        names=check_names(_literal(raw["names"])),
        imgsz=usable_imgsz(_literal(raw["imgsz"]), stride),
        stride=stride,
    )
    return Description(
        info=info,
        end2end=bool(_literal(raw.get("end2end", "False")) or arguments.get("nms", False)),
        dynamic=dynamic,
        rtdetr="RTDETR" in raw.get("head", ""),
        kpt_shape=None if kpt_shape is None else (int(kpt_shape[0]), int(kpt_shape[1])),
    )


def _literal(text: str) -> Any:
    if len(text) > _MAX_FIELD_CHARACTERS:
        raise ValueError("too long")
    return ast.literal_eval(text)
