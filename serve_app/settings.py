"""Every setting an operator can write, typed and frozen; unknown keys are refused by name.

`AppArgs` is the structure (the `args` of the application in serve_config.yaml): changing it
restarts replicas. `DetectorConfig` is what may change in place (the Detector's `user_config`).
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from serve_app.errors import ServeAppError
from serve_app.types import MAX_COPIES, MAX_IMAGE_PIXELS, Copies, ModelKey, ModelRef

OFFICIAL_URL = "https://github.com/ultralytics/assets/releases/download"
MAX_MESSAGE_BYTES = 2**31
"""A gRPC message is shorter than this, whatever is configured."""
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_BYTES: TypeAdapter[int] = TypeAdapter(ByteSize)


class SettingsError(ValueError):
    """A setting is unknown, malformed or contradicts another; the message names its key."""


def _check_budget(value: object) -> object:
    if not isinstance(value, bool) and isinstance(value, int | str):
        share = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
        if share is not None and 0 < float(share[1]) <= 100:
            return f"{float(share[1]):g}%"
        if share is None:
            try:
                if (size := int(_BYTES.validate_python(value))) > 0:
                    return size
            except ValidationError:
                pass
    raise ValueError(
        f"{value!r} is no amount of memory: write bytes (2147483648), a size ('2GiB') "
        "or a share of the device ('80%')"
    )


def _check_reference(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no model reference: write 'name' or 'name@version'")
    try:
        return str(ModelRef.parse(value))
    except ServeAppError as error:
        raise ValueError(error.detail) from None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model reference and on how many replicas it is wanted; None: on every one."""

    model: str
    copies: Copies


def _check_wanted(value: object, bare_copies: Copies) -> Wanted:
    if not isinstance(value, Mapping):
        return Wanted(_check_reference(value), bare_copies)
    unknown = sorted(str(key) for key in value if key not in ("model", "copies"))
    if unknown or "model" not in value:
        raise ValueError(
            f"{dict(value)!r} is no entry: write a reference, or {{model: name, copies: 2}}"
        )
    copies = value.get("copies", bare_copies)
    if copies == "all":
        copies = None
    elif copies is not None and (type(copies) is not int or not 1 <= copies <= MAX_COPIES):
        raise ValueError(
            f"copies: {copies!r}: expected a whole number from 1 to {MAX_COPIES}, or 'all'"
        )
    return Wanted(_check_reference(value["model"]), copies)


def _check_message(size: ByteSize) -> ByteSize:
    if size >= MAX_MESSAGE_BYTES:
        raise ValueError(
            f"{int(size)} bytes is too much: expected less than 2GiB ({MAX_MESSAGE_BYTES}), which "
            "is the most that a message between replicas may hold (gRPC)"
        )
    return size


def _expand(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # nobody of that name
        raise ValueError(str(error)) from None


MemoryBudget = Annotated[int | str, BeforeValidator(_check_budget)]
OnEach = Annotated[Wanted, BeforeValidator(partial(_check_wanted, bare_copies=None))]
OnOne = Annotated[Wanted, BeforeValidator(partial(_check_wanted, bare_copies=1))]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None) -> Self:
        """Validate `values`; raise SettingsError with one line that names each wrong key."""
        try:
            return cls.model_validate(dict(values or {}))
        except ValidationError as error:
            raise SettingsError(_explain(error, tuple(cls.model_fields))) from None


def _explain(error: ValidationError, known: tuple[str, ...]) -> str:
    return "; ".join(_explain_one(dict(item), known) for item in error.errors())


def _explain_one(item: dict[str, Any], known: tuple[str, ...]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        message = str(item["msg"]).removeprefix("Value error, ")
        return f"{path}: {message}" if path else message
    close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"{path}: unknown key; {hint}"


class AppArgs(_Settings):
    """The application's structure; the `args` in serve_config.yaml."""

    repository: Path = Field(
        default=Path("models"), description="Folder with models/<name>/<version>/model.pt or .onnx."
    )
    official_models: tuple[str, ...] = Field(
        default=(),
        description="Ultralytics' own models (yolo26n, yolo11n...) to offer, fetched on first use.",
    )
    official_url: str = Field(
        default=OFFICIAL_URL, description="Where official models are fetched from; for a mirror."
    )
    cache_dir: Annotated[Path, AfterValidator(_expand)] = Field(
        default=Path("~/.cache/serve_app"),
        validate_default=True,
        description="Folder that fetched model files and prepared weights are kept in.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where models run; auto takes a GPU where the cluster has one.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Numbers that models compute with; auto takes what the device does fast.",
    )
    cpu_engine: Literal["auto", "openvino"] = Field(
        default="auto",
        description="What runs models on a CPU; auto: PyTorch for .pt, ONNX Runtime for .onnx.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of a replica's engine; null: all cores that it may use.",
    )
    streams: int | None = Field(
        default=None,
        ge=1,
        le=32,
        description="Passes that run at the same time; null: one on a GPU, up to four on a CPU.",
    )
    prepared_bytes: ByteSize = Field(
        default=ByteSize(10 * 2**30),
        ge=0,
        description="Disk for prepared weights under cache_dir, on each node; 0 prepares nothing.",
    )
    parked_bytes: ByteSize = Field(
        default=ByteSize(2 * 2**30),
        ge=0,
        description="Host memory of a GPU replica for weights of models that left the GPU.",
    )
    max_concurrent_loads: int = Field(
        default=2, ge=1, le=32, description="Models that one replica loads at the same time."
    )
    max_body_bytes: Annotated[ByteSize, AfterValidator(_check_message)] = Field(
        default=ByteSize(32 * 2**20), gt=0, description="Largest request body, e.g. 32MiB."
    )
    max_inflight_bytes: ByteSize = Field(
        default=ByteSize(512 * 2**20),
        gt=0,
        description="Bodies of all requests that one ingress replica holds at the same time.",
    )
    max_image_pixels: int = Field(
        default=64_000_000,
        ge=1,
        le=MAX_IMAGE_PIXELS,
        description="Largest picture, width x height.",
    )
    max_images_per_request: int = Field(
        default=16, ge=1, le=256, description="Pictures that one request may hold."
    )
    request_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Longest time for one request; also the cap of a client's own timeout_s.",
    )
    max_wait_s: float | None = Field(
        default=3.0,
        gt=0,
        allow_inf_nan=False,
        description="Refuse predictions (503) while those in progress take longer; null: never.",
    )
    stuck_after_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="A replica whose engine runs one step for longer, and ten times longer than "
        "expected, is replaced.",
    )

    @model_validator(mode="after")
    def _check_bytes(self) -> Self:
        if self.max_inflight_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_inflight_bytes: {self.max_inflight_bytes} is less than max_body_bytes "
                f"({self.max_body_bytes}): the largest body could never be taken"
            )
        return self


class DetectorConfig(_Settings):
    """What may change in place, without a restart; the Detector's `user_config`."""

    memory_budget: MemoryBudget = Field(
        default="60%",
        description="Memory for models per replica: bytes, '2GiB', or a share of the device.",
    )
    max_models: int | None = Field(
        default=None, ge=1, description="Also cap the number of models in memory; null: no cap."
    )
    eviction_policy: Literal["lru", "gdsf"] = Field(
        default="gdsf",
        description="Who leaves first: lru: longest unused; gdsf: also by use, load time, size.",
    )
    working_set_window_s: float = Field(
        default=60.0,
        ge=1,
        le=86_400,
        description="A model asked for twice within so many seconds counts for autoscaling.",
    )
    pinned: tuple[OnEach, ...] = Field(
        default=(),
        description="Models that are loaded at once and never evicted; bare: on every replica.",
    )
    preload: tuple[OnOne, ...] = Field(
        default=(),
        description="Models that are resident before the replicas report ready; bare: on one.",
    )
    spare_copies_after_s: float | None = Field(
        default=None,
        ge=0,
        description="Give pinned and hot models a second copy once fewer replicas would do for so "
        "many seconds; null: never.",
    )

    def check_count(self, keys: Collection[ModelKey]) -> None:
        """Raise SettingsError when the `keys` that a replica must hold exceed `max_models`."""
        if self.max_models is not None and len(set(keys)) > self.max_models:
            raise SettingsError(
                f"max_models: {self.max_models}, but pinned and preload name {len(set(keys))} "
                "models together for one replica: raise max_models or name fewer"
            )

    def budget_bytes(self, device_bytes: int) -> int:
        """Return the budget in bytes on a device of `device_bytes`.

        Raises:
            SettingsError: the budget is larger than the device
        """
        if isinstance(self.memory_budget, str):
            return int(device_bytes * float(self.memory_budget.rstrip("%")) / 100)
        if self.memory_budget > device_bytes:
            raise SettingsError(
                f"memory_budget: {self.memory_budget} bytes is more than the device has "
                f"({device_bytes}): write at most that, or a share such as '80%'"
            )
        return self.memory_budget
