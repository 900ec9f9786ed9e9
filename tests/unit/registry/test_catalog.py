"""The registry: when it scans, and what it keeps when a source fails."""

import logging
from pathlib import Path

import pytest

from serve_app.errors import ModelNotFoundError
from serve_app.registry.catalog import Registry
from serve_app.settings import AppArgs
from serve_app.types import ModelKey, ModelRef
from tests.unit.registry.support import Clock, FakeSource, put


def test_a_lookup_scans_when_the_news_is_old() -> None:
    """Within the interval it answers from memory."""
    source, clock = FakeSource(["a@1"]), Clock()
    registry = Registry(source, refresh_interval_s=2.0, clock=clock)
    assert registry.resolve(ModelRef("a")) == ModelKey("a", "1")
    source.keys = ["a@1", "a@2"]
    clock.now += 1.9
    assert registry.resolve(ModelRef("a")) == ModelKey("a", "1")
    assert source.scans == 1
    clock.now += 0.2
    assert registry.resolve(ModelRef("a")) == ModelKey("a", "2")
    assert len(registry.list()) == 2
    assert source.scans == 2
    clock.now += 2.1
    source.keys = []
    assert registry.list() == ()


def test_a_miss_scans_at_most_four_times_a_second() -> None:
    """A flood of unknown names does not reach the disk."""
    source, clock = FakeSource(["a@1"]), Clock()
    registry = Registry(source, clock=clock)
    registry.refresh()
    for _ in range(100):
        clock.now += 0.01
        with pytest.raises(ModelNotFoundError):
            registry.spec(ModelKey("b", "1"))
    assert source.scans <= 5
    source.keys.append("b@1")
    clock.now += 0.3
    assert registry.spec(ModelKey("b", "1")).location == "/b@1/model.pt"


def test_a_slow_scan_is_repeated_less_often() -> None:
    """On a slow disk with many models the scan takes its share of the time, no more."""
    clock = Clock()

    def take_half_a_second() -> None:
        clock.now += 0.5

    registry = Registry(FakeSource(on_scan=take_half_a_second), clock=clock)
    assert registry.age_s == float("inf")
    registry.refresh()
    assert registry.refresh_interval_s == 10.0
    assert registry.miss_interval_s == 2.0


def test_a_failing_source_keeps_what_it_had(caplog: pytest.LogCaptureFixture) -> None:
    """A network folder that is away for a minute does not unregister its models."""
    failing, other = FakeSource(["a@1"]), FakeSource(["b@1"])
    registry = Registry(failing, other)
    registry.refresh()
    failing.error, other.keys = OSError("stale handle"), ["b@1", "b@2"]
    with caplog.at_level(logging.WARNING):
        registry.refresh()
        registry.refresh()
    assert [str(entry.key) for entry in registry.list()] == ["a@1", "b@1", "b@2"]
    assert len(caplog.records) == 1
    assert "fake source cannot be read" in caplog.text
    failing.error, failing.keys = None, []
    registry.refresh()
    assert len(registry.list()) == 2


async def test_it_is_made_from_the_settings(tmp_path: Path) -> None:
    """Own models come before official ones of the same name."""
    put(tmp_path, "yolo11n/1")
    args = AppArgs(
        repository=tmp_path, official_models=("yolo11n", "yolo26n"), official_url="http://mirror"
    )
    registry = Registry.from_settings(args)
    await registry.refresh_now()
    assert [str(entry.key) for entry in registry.list()] == [
        "yolo11n@1",
        "yolo11n@v8.4.0",
        "yolo26n@v8.4.0",
    ]
    assert str(registry.resolve(ModelRef("yolo11n"))) == "yolo11n@1"
    assert registry.list()[2].location.startswith("http://mirror/")
