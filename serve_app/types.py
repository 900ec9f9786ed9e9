"""The values that travel between the layers: references, specs, requests and results.

Nothing here needs torch, Ray or HTTP, so every layer may import it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidParameterError

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_REFERENCE = re.compile(rf"(?P<name>{_PART})(?:@(?P<version>{_PART}))?")

MIN_IMGSZ, MAX_IMGSZ = 32, 1920
"""Sides of a model's input, in pixels."""
MAX_DET = 300
"""Findings in one picture: what end-to-end heads give at most."""
MAX_IMAGE_PIXELS = 178_956_970
"""What Pillow opens at all."""
MAX_COPIES = 256
"""Replicas on which one model may be wanted by number."""

Copies = int | None
"""On how many replicas a model is wanted; None: on every one, 0: on none."""

FloatArray = npt.NDArray[np.float32]
ImageArray = npt.NDArray[np.uint8]
"""A decoded picture: (height, width, 3), BGR."""


class Task(StrEnum):
    """What a model answers, in Ultralytics' own words."""

    DETECT = "detect"
    SEGMENT = "segment"
    POSE = "pose"
    OBB = "obb"
    CLASSIFY = "classify"


class ModelFormat(StrEnum):
    """The kind of file a model comes as; also its suffix."""

    PT = "pt"
    ONNX = "onnx"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a client writes: `name` or `name@version`."""

    name: str
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `name` or `name@version`; raise InvalidParameterError for anything else."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise InvalidParameterError(
                f"model reference {text[:200]!r} is malformed: expected 'name' or 'name@version' "
                "of letters, digits, '.', '_' and '-', each at most 128 characters long"
            )
        return cls(match["name"], match["version"])

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, order=True)
class ModelKey:
    """What a reference resolves to: one immutable version; the multiplexed model id is its text."""

    name: str
    version: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key whose text is `name@version`; raise ValueError for anything else."""
        match = _REFERENCE.fullmatch(text)
        if match is None or match["version"] is None:
            raise ValueError(f"{text[:200]!r} is no model key: expected 'name@version'")
        return cls(match["name"], match["version"])

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model's author says of it in `model.yaml`; everything is optional.

    training, evaluation: free, flat facts such as `epochs` or `map50`
    """

    description: str | None = None
    architecture: str | None = None
    task: Task | None = None
    classes: tuple[str, ...] = ()
    imgsz: int | None = None
    training: Mapping[str, str | int | float | bool | None] = field(
        default_factory=dict, hash=False
    )
    evaluation: Mapping[str, str | int | float | bool | None] = field(
        default_factory=dict, hash=False
    )
    license: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One registered version and where its bytes lie.

    `location` is a path for the source `folder` and a URL for the source `ultralytics`.
    `size_bytes` is the file's size, None while it has not been fetched.
    """

    key: ModelKey
    format: ModelFormat
    source: str
    location: str
    size_bytes: int | None = None
    card: ModelCard = field(default_factory=ModelCard)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Device memory of one model, in bytes.

    own_bytes: what only this model holds (its weights)
    shared: what it holds together with other models, by identity (its graph); counted once
    """

    own_bytes: int
    shared: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Bytes needed when nothing is shared with a resident model."""
        return self.own_bytes + sum(self.shared.values())


@dataclass(frozen=True, slots=True)
class PredictParams:
    """Thresholds as in `YOLO.predict`; `imgsz` is (height, width) in pixels or the model's own."""

    conf: float = 0.25
    iou: float = 0.7
    imgsz: tuple[int, int] | None = None
    max_det: int = 300
    classes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """One call: encoded pictures for one model; `timeout_s` is what is left of its time."""

    key: ModelKey
    images: tuple[bytes, ...]
    params: PredictParams
    timeout_s: float
    annotate: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ImageResult:
    """What a model found in one picture; the n findings are sorted by falling confidence.

    shape: (height, width) of the picture in pixels, EXIF orientation applied
    class_id, confidence: (n,)
    boxes: (n, 4) x1 y1 x2 y2 in pixels; None for obb and classify
    corners: (n, 4, 2) x y in pixels; only for obb
    polygons: n arrays (k, 2) x y in pixels; only for segment
    keypoints: (n, k, 2) x y, or (n, k, 3) x y visibility; only for pose
    For classify the findings are the five best classes, whatever the threshold.
    speed_ms: milliseconds of preprocess, inference and postprocess
    annotated: a JPEG of the picture with its findings drawn, when asked for
    """

    shape: tuple[int, int]
    class_id: npt.NDArray[np.int64]
    confidence: FloatArray
    boxes: FloatArray | None = None
    corners: FloatArray | None = None
    polygons: tuple[FloatArray, ...] | None = None
    keypoints: FloatArray | None = None
    speed_ms: Mapping[str, float] = field(default_factory=dict)
    annotated: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PredictResult:
    """The answer to a PredictRequest, its images in the request's order.

    cold: whether this request had to wait for the model to become resident
    load_ms: how long that load took, None when the model was resident
    queue_ms: time spent waiting for room, a lease or the engine, without the load
    """

    key: ModelKey
    task: Task
    names: Mapping[int, str]
    images: tuple[ImageResult, ...]
    cold: bool
    load_ms: float | None
    queue_ms: float

    @property
    def phases_s(self) -> dict[str, float]:
        """Seconds that each phase took: queue, load, then the engine's, summed over the images."""
        phases = {"queue": self.queue_ms / 1000}
        if self.load_ms is not None:
            phases["load"] = self.load_ms / 1000
        for image in self.images:
            for phase, milliseconds in image.speed_ms.items():
                phases[phase] = phases.get(phase, 0.0) + milliseconds / 1000
        return phases


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """One model as a replica reports it. `idle_s`: seconds since it was last used."""

    key: str
    state: str
    bytes: int
    leases: int
    pinned: bool
    idle_s: float


@dataclass(frozen=True, slots=True)
class Pin:
    """On how many replicas someone wants a model, and since when.

    time_s: of the wall clock, so that the last of several writers wins everywhere
    author: who wrote it; decides between two of the same time
    """

    key: str
    copies: Copies
    time_s: float
    author: str


@dataclass(frozen=True, slots=True)
class SetAside:
    """A model that is not loaded for now, since its loads kept failing.

    code: of the error that the last one ended in
    failures: in a row
    retry_in_s: seconds until a load is tried again
    """

    key: str
    code: str
    failures: int
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """The state of one replica, as `GET /v1/replicas` shows it.

    advertised: the model keys that Ray's routers are told of
    config_error: why the last `user_config` was refused, or a model that it names left out
    set_aside: the models whose requests are refused because their loads kept failing
    share: the pins and preloads of `user_config` that fell to this replica
    pinned: the models that are never evicted here
    second_copies: those of them that are here only until another replica has gone
    pin_errors: why a pinned model could not be loaded here, by key
    configured: the copies that `user_config` wants of its pinned models, by key
    pins: what was pinned and unpinned over HTTP, as far as this replica knows
    spare_copies_after_s, working_set_window_s: as in `user_config`
    load: what the autoscaler is told (serve_app.scaling.reports)
    """

    replica_id: str
    pid: int
    node_id: str
    device: str
    budget_bytes: int
    used_bytes: int
    max_models: int | None
    models: tuple[ResidentModel, ...]
    advertised: tuple[str, ...] = ()
    config_error: str | None = None
    set_aside: tuple[SetAside, ...] = ()
    share: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    second_copies: tuple[str, ...] = ()
    pin_errors: Mapping[str, str] = field(default_factory=dict, hash=False)
    configured: Mapping[str, Copies] = field(default_factory=dict, hash=False)
    pins: tuple[Pin, ...] = ()
    spare_copies_after_s: float | None = None
    working_set_window_s: float = 60.0
    load: Mapping[str, float] = field(default_factory=dict, hash=False)
