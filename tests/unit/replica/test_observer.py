"""What the cache tells reaches those who act on it."""

from typing import Any

import pytest

from serve_app.engines.watch import Watch
from serve_app.errors import DeviceFailedError, ModelBrokenError
from serve_app.replica.health import Health, UnhealthyError
from serve_app.replica.observer import ReplicaObserver
from serve_app.types import ModelKey

KEY = ModelKey("m", "1")


class Counts:
    """Metrics that keep the codes of failed loads."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def load_failed(self, code: str) -> None:
        """Count a failed load."""
        self.failed.append(code)


async def test_a_device_that_fails_a_load_nobody_waits_for_fails_the_replica() -> None:
    """A model that is broken does not."""
    health = Health(Watch(), stuck_after_s=30.0, leave=lambda: None, leave_after_s=0.0)
    counts, unused = Counts(), object()
    metrics: Any = counts
    scaling: Any = unused
    observer = ReplicaObserver(metrics, lambda _: None, scaling, health.saw)
    observer.load_failed(KEY, ModelBrokenError("cut short"))
    observer.load_failed(KEY, ValueError("a defect"))
    health.check()
    observer.load_failed(KEY, DeviceFailedError("the device failed"))
    with pytest.raises(UnhealthyError, match="the device failed"):
        health.check()
    assert counts.failed == ["model_broken", "internal_error", "device_failed"]
