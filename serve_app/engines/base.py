"""What the rest of the application asks of an engine.

An engine runs models on one device. It knows files, tensors and pictures; it knows nothing of
models' names, budgets, Ray or HTTP. Blocking calls are marked with the thread they belong to:

- *loader thread*: one of a few; must not run torch's parallel operators
- *engine thread*: the only one that does (a second OpenMP team would slow both down)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve_app.types import Footprint, ImageArray, ImageResult, PredictParams, Task


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model says of itself. `imgsz` is (height, width) in pixels."""

    task: Task
    names: Mapping[int, str]
    imgsz: tuple[int, int]
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a model's file says of it, of whatever format.

    end2end: whether it picks the final boxes itself
    dynamic: whether it takes any input size
    rtdetr: whether it is an RT-DETR, whose boxes are decoded in another way
    transforms: the preprocessing that a classification checkpoint carries, None elsewhere
    """

    info: ModelInfo
    end2end: bool
    dynamic: bool
    rtdetr: bool
    kpt_shape: tuple[int, int] | None
    transforms: object | None = None


class EngineModel(Protocol):
    """A model open on a device; holding it keeps its memory."""

    @property
    def info(self) -> ModelInfo:
        """Task, class names and input size."""

    @property
    def footprint(self) -> Footprint:
        """What it really holds, measured."""

    def warm_up(self) -> None:
        """Run one forward pass at the model's own input size (engine thread)."""

    def predict(
        self, image: ImageArray, params: PredictParams, *, annotate: bool = False
    ) -> ImageResult:
        """Answer for one picture (engine thread).

        Raises:
            InvalidParameterError: a parameter does not fit this model (class id, input size)
        """

    def close(self) -> None:
        """Give the memory back; the model must not be used afterwards (engine thread)."""


class Engine(Protocol):
    """Opens files of one format."""

    def verify(self, path: Path) -> Footprint:
        """Check the file without running it and estimate its footprint (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """

    def open(self, path: Path) -> EngineModel:
        """Read the file into device memory, without a forward pass (loader thread).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """
