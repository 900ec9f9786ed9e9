"""Ray's health check of a detector tells of its engine, whatever the bookkeeping does."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.replica.deployment import Detector
from serve_app.replica.health import UnhealthyError


class Replica:
    """The parts of a detector that its health check uses; `calls` tells their order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.unhealthy: Exception | None = None
        self.defect: Exception | None = None
        self._health = SimpleNamespace(check=self._step("health", lambda: self.unhealthy))
        self._record_memory = self._step("memory", lambda: self.defect)
        self._metrics = SimpleNamespace(set_aside=lambda count: self.calls.append(f"aside {count}"))
        self._cache = SimpleNamespace(set_aside=lambda: ("m@1",))

    async def check_health(self) -> None:
        """Check it as Ray does."""
        detector: Any = self
        await Detector.check_health(detector)

    def _step(self, name: str, error: Callable[[], Exception | None]) -> Callable[[], None]:
        def step() -> None:
            self.calls.append(name)
            if (raised := error()) is not None:
                raise raised

        return step


async def test_the_engine_comes_first() -> None:
    """Then what is counted."""
    replica = Replica()
    await replica.check_health()
    assert replica.calls == ["health", "memory", "aside 1"]


async def test_a_stuck_engine_is_told_of() -> None:
    """Even if nothing can be counted."""
    replica = Replica()
    replica.unhealthy, replica.defect = UnhealthyError("stuck"), ValueError("a defect")
    with pytest.raises(UnhealthyError):
        await replica.check_health()


async def test_a_defect_in_counting_fails_no_replica(caplog: pytest.LogCaptureFixture) -> None:
    """The log has it."""
    replica = Replica()
    replica.defect = ValueError("a defect")
    await replica.check_health()
    assert "a defect" in caplog.text
