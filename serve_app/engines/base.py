"""What the rest of the application asks of an engine.

An engine runs models on one device. It knows files, tensors and pictures; it knows nothing of
models' names, budgets, Ray or HTTP. Blocking calls are marked with the thread they belong to:

- *loader thread*: one of a few that read files; torch held to one core
- *decoder thread*: one of a few that turn pictures into inputs; torch held to one core
- *stream*: a thread that runs models; several may run different models, or the same one, at once
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from serve_app.engines.profile import BatchProfile
from serve_app.errors import ServeAppError
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


@dataclass(frozen=True, slots=True, eq=False)
class ModelInput:
    """One picture as its model takes it.

    pixels: (1, 3, height, width) on the model's device, RGB in 0..1
    postprocess: raw output of this picture alone -> its findings
    preprocess_ms: time it took to make
    """

    pixels: torch.Tensor
    postprocess: Callable[[Any], tuple[ImageResult, float]]
    preprocess_ms: float

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels; inputs of equal shape can go in one batch."""
        return int(self.pixels.shape[2]), int(self.pixels.shape[3])


Answer = ImageResult | ServeAppError
"""What a model says to one picture."""


class EngineModel(Protocol):
    """A model open on a device; holding it keeps its memory."""

    @property
    def was_prepared(self) -> bool:
        """Whether `prepare` had nothing left to make its opening faster."""

    @property
    def info(self) -> ModelInfo:
        """Task, class names and input size."""

    @property
    def footprint(self) -> Footprint:
        """What it really holds, measured."""

    @property
    def profile(self) -> BatchProfile:
        """How long batches take, found when it was warmed up."""

    def warm_up(self) -> None:
        """Run it at its own input size, and find how large batches should be (stream)."""

    def preprocess(
        self, image: ImageArray, params: PredictParams, *, annotate: bool = False
    ) -> ModelInput:
        """Turn a picture into this model's input (decoder thread).

        Raises:
            InvalidParameterError: a parameter does not fit this model (class id, input size)
            InvalidImageError: the picture is too long and narrow to be classified
        """

    def predict(self, inputs: Sequence[ModelInput]) -> list[Answer]:
        """Answer for inputs of one shape, made by this model, each as if alone (stream).

        An error that concerns one picture only stands in the place of its result.

        Raises:
            ModelBrokenError: the model fails on sound input
            OverloadedError: the memory ran out
        """

    def close(self) -> None:
        """Give the memory back; the model must not be used afterwards (any thread)."""


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

    def prepare(self, path: Path) -> bool:
        """Make what `open` will read faster; return whether that made any (own process).

        Raises:
            ModelBrokenError: the file is corrupt, unsafe or no YOLO model
        """

    def parked(self) -> tuple[Path, ...]:
        """Return the files that `open` finds in host memory, the last used last (any thread)."""
