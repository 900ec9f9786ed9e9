"""A model's description as plain data, for files in which nothing can run code."""

from typing import Any

from serve_app.engines.base import Description, ModelInfo
from serve_app.engines.structure import decode_object, encode_object
from serve_app.types import Task


def encode_description(description: Description) -> dict[str, Any]:
    """Return what `json` can write.

    Raises:
        IndescribableError: the description holds what plain data cannot say
    """
    info = description.info
    return {
        "task": info.task,
        "names": list(info.names.items()),
        "imgsz": info.imgsz,
        "stride": info.stride,
        "end2end": description.end2end,
        "dynamic": description.dynamic,
        "rtdetr": description.rtdetr,
        "kpt_shape": description.kpt_shape,
        "transforms": encode_object(description.transforms),
    }


def decode_description(plain: Any) -> Description:
    """Return the description that was encoded.

    Raises:
        Exception: of any kind but `MemoryError`; the data are no description
    """
    height, width = plain["imgsz"]
    kpt_shape = plain["kpt_shape"]
    info = ModelInfo(
        task=Task(plain["task"]),
        names={int(number): str(name) for number, name in plain["names"]},
        imgsz=(int(height), int(width)),
        stride=int(plain["stride"]),
    )
    return Description(
        info=info,
        end2end=bool(plain["end2end"]),
        dynamic=bool(plain["dynamic"]),
        rtdetr=bool(plain["rtdetr"]),
        kpt_shape=None if kpt_shape is None else (int(kpt_shape[0]), int(kpt_shape[1])),
        transforms=decode_object(plain["transforms"]),
    )
