"""The registry: when it scans, and what it keeps when a source fails."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from serve_app.registry.catalog import Registry
from serve_app.registry.pace import REST_S, Pace
from serve_app.settings import AppArgs
from serve_app.types import ModelRef, ModelSpec
from tests.unit.registry.support import Clock, FakeSource, put, spec


def test_a_slow_scan_is_repeated_less_often() -> None:
    """On a slow disk with many models the scan takes its share of the time, no more."""
    clock = Clock()

    def take_half_a_second() -> None:
        clock.now += 0.5

    registry = Registry(FakeSource(on_scan=take_half_a_second), clock=clock)
    assert registry.age_s == float("inf")
    registry.refresh()
    assert registry.refresh_interval_s == 10.0


def test_a_failing_source_keeps_what_it_had(caplog: pytest.LogCaptureFixture) -> None:
    """A network folder that is away for a minute does not unregister its models."""
    failing, other = FakeSource(["a@1"]), FakeSource(["b@1"])
    registry = Registry(failing, other)
    registry.refresh()
    failing.error, other.keys = OSError("stale handle"), ["b@1", "b@2"]
    with caplog.at_level(logging.WARNING):
        registry.refresh()
        registry.refresh()
    assert [str(entry.key) for entry in registry.snapshot.specs] == ["a@1", "b@1", "b@2"]
    assert len(caplog.records) == 1
    assert "fake source cannot be read" in caplog.text
    failing.error, failing.keys = None, []
    registry.refresh()
    assert len(registry.snapshot.specs) == 2


def test_no_news_is_the_same_snapshot() -> None:
    """Whoever follows it sees at once that nothing has changed."""
    source = FakeSource(["a@1"])
    registry = Registry(source)
    registry.refresh()
    before = registry.snapshot
    registry.refresh()
    registry.look("a")
    registry.look("b")
    assert registry.snapshot is before
    source.keys.append("a@2")
    registry.refresh()
    assert registry.snapshot is not before


def test_one_name_is_brought_up_to_date_by_itself() -> None:
    """What is new comes in, what is gone leaves, and no other name is looked at."""
    own, official = FakeSource(["a@1", "b@1"]), FakeSource(["a@9"])
    registry = Registry(own, official)
    registry.refresh()
    own.keys = ["a@2", "c@1"]
    registry.look("a")
    assert [str(entry.key) for entry in registry.snapshot.specs] == ["a@2", "a@9", "b@1"]
    assert str(registry.snapshot.resolve(ModelRef("a"))) == "a@2"
    registry.look("c")
    registry.look("b")
    assert [str(entry.key) for entry in registry.snapshot.specs] == ["a@2", "a@9", "c@1"]
    assert own.looks == ["a", "c", "b"]
    assert own.scans == official.scans == 1


def test_a_scan_does_not_take_back_what_a_look_found_meanwhile() -> None:
    """It may have passed by that folder before; so a new version would come and go."""

    class Behind(FakeSource):
        def scan(self) -> Sequence[ModelSpec]:
            listed = [spec(key) for key in self.keys]
            self.on_scan()
            return listed

    source = Behind(["a@1", "b@1"])
    registry = Registry(source)
    registry.refresh()

    def change() -> None:
        source.keys = ["a@1", "a@2", "c@1"]
        for name in ("a", "b", "c"):
            registry.look(name)

    source.on_scan = change
    registry.refresh()
    assert [str(entry.key) for entry in registry.snapshot.specs] == ["a@1", "a@2", "c@1"]
    source.on_scan = lambda: None
    source.keys = ["a@1"]
    registry.refresh()
    assert [str(entry.key) for entry in registry.snapshot.specs] == ["a@1"]


def test_rests_do_not_count_as_the_scan_s_time() -> None:
    """What they cost nobody need not make scans rarer."""
    clock = Clock()

    def rest(seconds: float) -> None:
        clock.now += 100 * seconds

    class Slow(FakeSource):
        def scan(self) -> Iterator[ModelSpec]:
            for entry in super().scan():
                clock.now += 0.5
                yield entry

    registry = Registry(Slow(["a@1", "b@1"]), clock=clock, pace=Pace(clock, rest))
    registry.refresh(gently=True)
    assert clock.now == pytest.approx(100 + 2 * 0.5 + 2 * 100 * REST_S)
    assert registry.refresh_interval_s == pytest.approx(20.0)


def test_a_failing_look_changes_nothing() -> None:
    """Models do not vanish with the folder that they lie in."""
    source = FakeSource(["a@1"])
    registry = Registry(source)
    registry.refresh()
    source.error = OSError("stale handle")
    registry.look("a")
    assert [str(entry.key) for entry in registry.snapshot.specs] == ["a@1"]


async def test_it_is_made_from_the_settings(tmp_path: Path) -> None:
    """Own models come before official ones of the same name."""
    put(tmp_path, "yolo11n/1")
    args = AppArgs(
        repository=tmp_path, official_models=("yolo11n", "yolo26n"), official_url="http://mirror"
    )
    registry = Registry.from_settings(args)
    await registry.refresh_now()
    assert [str(entry.key) for entry in registry.snapshot.specs] == [
        "yolo11n@1",
        "yolo11n@v8.4.0",
        "yolo26n@v8.4.0",
    ]
    assert str(registry.snapshot.resolve(ModelRef("yolo11n"))) == "yolo11n@1"
    assert registry.snapshot.specs[2].location.startswith("http://mirror/")
