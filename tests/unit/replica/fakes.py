"""A model behind our own protocol that does as told, and pictures that need no decoder."""

import io
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from serve_app.engines.base import Answer, ModelInfo, ModelInput
from serve_app.engines.profile import BatchProfile
from serve_app.errors import InvalidImageError, ServeAppError
from serve_app.types import Footprint, ImageArray, ImageResult, PredictParams, Task

SIDE = 32
ROW_BYTES = 300


def picture(number: int, rows: int = 1) -> bytes:
    """Return the bytes of a picture that decodes to `rows` rows of 300 bytes."""
    return f"{number} {rows}".encode()


BROKEN = b"broken"


def decode(data: bytes) -> ImageArray:
    """Return a picture whose pixels are all its number."""
    if data == BROKEN:
        raise InvalidImageError("broken")
    number, rows = map(int, data.split())
    return np.full((rows, ROW_BYTES // 3, 3), number, np.uint8)


def decoded_bytes(data: bytes) -> int:
    """Return what `decode` will give."""
    return 0 if data == BROKEN else int(data.split()[1]) * ROW_BYTES


def png(shade: int) -> bytes:
    """Return a real picture of 120 x 90 pixels."""
    data = io.BytesIO()
    generator = np.random.default_rng(shade)
    pixels = generator.integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what threads bring about; a test that fails waits for long."""
    given_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < given_up, "what was waited for did not happen"
        time.sleep(0.001)


class FakeModel:
    """Finds each picture's number; its steps are recorded and can be held up.

    An input is one picture of (32, 32), or of the `imgsz` asked for.
    """

    was_prepared = True

    def __init__(
        self, name: str = "m", log: list[str] | None = None, *, seconds: tuple[float, ...] = ()
    ) -> None:
        """`seconds`: the profile; `log` may be shared by several models."""
        self.name = name
        self.log = [] if log is None else log
        self.batches: list[list[int]] = []
        self.opened = threading.Event()
        self.opened.set()
        self.running = 0
        self.failures: dict[int, Answer] = {}
        self.breaks: Callable[[list[int]], ServeAppError | None] = lambda _: None
        self._seconds = seconds

    @property
    def info(self) -> ModelInfo:
        """Something."""
        return ModelInfo(Task.DETECT, {0: "part"}, (SIDE, SIDE), 32)

    @property
    def footprint(self) -> Footprint:
        """Something."""
        return Footprint(1)

    @property
    def profile(self) -> BatchProfile:
        """As told."""
        return BatchProfile(self._seconds)

    def warm_up(self) -> None:
        """Do nothing."""

    def preprocess(
        self, image: ImageArray, params: PredictParams, *, annotate: bool = False
    ) -> ModelInput:
        """Keep the number."""
        number = int(image[0, 0, 0])
        self.log.append(f"decoded {self.name} {number}")
        pixels = torch.full((1, 3, *(params.imgsz or (SIDE, SIDE))), number, dtype=torch.uint8)
        return ModelInput(pixels, lambda raw: (self._result(raw), 1.0), 2.0)

    def predict(self, inputs: Sequence[ModelInput]) -> list[Answer]:
        """Wait to be let through, then answer."""
        assert len({one.shape for one in inputs}) == 1
        numbers = [int(one.pixels[0, 0, 0, 0]) for one in inputs]
        self.batches.append(numbers)
        self.log.extend(f"ran {self.name} {number}" for number in numbers)
        self.running += 1
        self.opened.wait(10)
        self.running -= 1
        if (error := self.breaks(numbers)) is not None:
            raise error
        return [self.failures.get(number) or self._result(number) for number in numbers]

    def close(self) -> None:
        """Be closed."""
        self.log.append(f"closed {self.name}")

    def _result(self, number: int) -> ImageResult:
        return ImageResult(
            (1, 1),
            np.array([number]),
            np.ones(1, np.float32),
            speed_ms={"preprocess": 2.0, "inference": 3.0, "postprocess": 1.0},
        )
