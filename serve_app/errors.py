"""Every error a client can meet, as one tree.

ServeAppError
├── ModelNotFoundError       404 model_not_found
├── ImageTooLargeError       413 image_too_large
├── UnsupportedMediaError    415 unsupported_media_type
├── InvalidImageError        422 invalid_image
├── InvalidParameterError    422 invalid_parameter
├── ModelBrokenError         424 model_broken
├── OverloadedError          503 overloaded
├── SourceUnavailableError   503 source_unavailable
├── DeviceFailedError        503 device_failed
├── ReplicaFailingError      503 replica_failing
├── DeadlineExceededError    504 deadline_exceeded
└── ModelExceedsBudgetError  507 model_exceeds_budget

The HTTP status and the stable code stand on the class, so a layer that raises one needs to know
nothing of HTTP. Between processes an error travels as a `Failure`, a plain value: Ray would
otherwise log a stack trace, and count a broken deployment, for each bad picture.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a value that crosses process borders."""

    code: str
    detail: str
    retry_after_s: float | None = None


class ServeAppError(Exception):
    """Base of all errors that a client is told about."""

    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]
    default_retry_after_s: ClassVar[float | None] = None

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        """Tell in `detail` what was wrong, what was expected and what to do."""
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s

    def to_failure(self) -> Failure:
        """Return this error as a value that can be sent to another process."""
        return Failure(self.code, self.detail, self.retry_after_s)

    def copy(self) -> "ServeAppError":
        """Return an equal error without traceback: many waiters each raise their own."""
        return type(self)(self.detail, retry_after_s=self.retry_after_s)


class ModelNotFoundError(ServeAppError):
    """No model has this name, version or alias."""

    status = 404
    code = "model_not_found"
    title = "Model not found"


class ImageTooLargeError(ServeAppError):
    """The bytes, the pixels or the number of images are over the limit."""

    status = 413
    code = "image_too_large"
    title = "Image too large"


class UnsupportedMediaError(ServeAppError):
    """The body is neither an image of an accepted format nor a form with such images."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class InvalidImageError(ServeAppError):
    """The image is truncated or cannot be decoded."""

    status = 422
    code = "invalid_image"
    title = "Invalid image"


class InvalidParameterError(ServeAppError):
    """A parameter is malformed or out of range."""

    status = 422
    code = "invalid_parameter"
    title = "Invalid parameter"


class ModelBrokenError(ServeAppError):
    """The model's own file is corrupt, unsafe or not a YOLO model."""

    status = 424
    code = "model_broken"
    title = "Model broken"


class OverloadedError(ServeAppError):
    """There is no room or no turn for this request within its time."""

    status = 503
    code = "overloaded"
    title = "Overloaded"
    default_retry_after_s = 1.0


class QueueFullError(OverloadedError):
    """The bounded queue before the detectors is full; a client is told `overloaded`."""


class DeviceFailedError(ServeAppError):
    """The device or the engine failed under this request; another replica may answer it."""

    status = 503
    code = "device_failed"
    title = "Device failed"
    default_retry_after_s = 1.0


class ReplicaFailingError(ServeAppError):
    """The replica is about to be replaced and has not begun this request."""

    status = 503
    code = "replica_failing"
    title = "Replica failing"
    default_retry_after_s = 1.0


class SourceUnavailableError(ServeAppError):
    """The place where the model's file lies cannot be reached."""

    status = 503
    code = "source_unavailable"
    title = "Model source unavailable"
    default_retry_after_s = 30.0


class DeadlineExceededError(ServeAppError):
    """The request could not be answered within its time limit."""

    status = 504
    code = "deadline_exceeded"
    title = "Deadline exceeded"


class ModelExceedsBudgetError(ServeAppError):
    """The model alone needs more memory than the whole budget."""

    status = 507
    code = "model_exceeds_budget"
    title = "Model exceeds the memory budget"


ERRORS: dict[str, type[ServeAppError]] = {cls.code: cls for cls in ServeAppError.__subclasses__()}


def from_failure(failure: Failure) -> ServeAppError:
    """Return the error that `failure` was made of."""
    return ERRORS[failure.code](failure.detail, retry_after_s=failure.retry_after_s)
