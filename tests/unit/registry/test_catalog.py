"""The registry: when it scans, and what it keeps when a source fails."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.registry.catalog import Registry
from serve_app.registry.pace import REST_S, Pace
from serve_app.settings import AppArgs
from serve_app.types import ModelRef, ModelSpec
from tests.unit.registry.support import Clock, FakeSource, LateSource, put, spec


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
    source = LateSource(["a@1", "b@1"])
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


@pytest.mark.parametrize("left", [["b@1"], ["a@1", "b@1"]])
def test_a_look_that_read_before_a_scan_is_not_newer_than_it(left: list[str]) -> None:
    """Otherwise what was removed meanwhile is back until the next scan."""
    source = FakeSource(["a@1", "b@1"])
    registry = Registry(source)
    registry.refresh()
    source.keys = ["a@1", "a@2", "b@1"]

    def remove() -> None:
        source.on_look, source.keys = (lambda: None), left
        registry.refresh()

    source.on_look = remove
    registry.look("a")
    assert [str(entry.key) for entry in registry.snapshot.specs] == left
    assert source.looks == ["a", "a"]


def test_a_scan_that_fails_keeps_what_a_look_found_meanwhile() -> None:
    """That is what was seen last."""
    source = FakeSource(["a@1"])
    registry = Registry(source)
    registry.refresh()

    def fail() -> None:
        source.keys = ["a@1", "b@1"]
        registry.look("b")
        source.error = OSError("stale handle")

    source.on_scan = fail
    registry.refresh()
    assert [str(entry.key) for entry in registry.snapshot.specs] == ["a@1", "b@1"]


def test_a_model_that_is_away_for_a_moment_is_not_lost() -> None:
    """Replaced by renaming just as the scan passes by; the look before or after it saw no news."""
    source = LateSource(["a@1", "b@1"])
    registry = Registry(source)
    registry.refresh()
    before = registry.snapshot

    def back() -> None:
        source.keys = ["a@1", "b@1"]
        registry.look("a")

    source.keys, source.on_scan = ["b@1"], back
    registry.refresh()
    assert registry.snapshot.specs == before.specs


def test_what_scan_and_look_agree_on_is_not_read_again() -> None:
    """A flood of names during the first scan costs no look at its end."""
    source = LateSource(["a@1", "b@1"])
    registry = Registry(source)

    def look() -> None:
        for name in "abc":
            registry.look(name)

    source.on_scan = look
    registry.refresh()
    assert source.looks == ["a", "b", "c"]
    assert len(registry.snapshot.specs) == 2


def test_only_looks_while_a_scan_runs_are_in_doubt() -> None:
    """A scan reads after those before it."""
    source = FakeSource(["a@1"])
    registry = Registry(source)
    source.on_scan = lambda: registry.look("a")
    registry.refresh()
    source.on_scan = lambda: None
    registry.look("b")
    source.keys = ["a@2", "b@1"]
    registry.refresh()
    assert source.looks == ["a", "b"]
    assert [str(entry.key) for entry in registry.snapshot.specs] == ["a@2", "b@1"]


def test_the_end_of_a_scan_holds_up_no_look() -> None:
    """What it reads again, it reads beside; nor does that make scans rarer."""
    clock = Clock()
    source = LateSource(["a@1"])
    registry = Registry(source, clock=clock)
    beside = threading.Thread(target=registry.look, args=("b",))

    def change() -> None:
        source.keys = ["a@2", "b@1"]
        registry.look("a")
        source.on_look = read_again

    def read_again() -> None:
        source.on_look = lambda: None
        clock.now += 1
        beside.start()
        beside.join(5)
        assert registry.snapshot.versions("b") == ("1",)

    source.on_scan = change
    registry.refresh()
    assert source.looks == ["a", "a", "b"]
    assert [str(entry.key) for entry in registry.snapshot.specs] == ["a@2", "b@1"]
    assert registry.refresh_interval_s == 2.0


def test_the_end_of_a_scan_takes_each_model_a_few_times() -> None:
    """Not once for each name that was looked at meanwhile."""
    models, names = 300, 100
    taken: Counter[None] = Counter()

    class Counted(ModelSpec):
        def __getattribute__(self, attribute: str) -> object:
            taken[None] += attribute == "key"
            return super().__getattribute__(attribute)

    class Many(FakeSource):
        version = "1"

        def scan(self) -> list[ModelSpec]:
            listed = [self.scan_name(f"m{number}")[0] for number in range(models)]
            self.on_scan()
            return listed

        def scan_name(self, name: str) -> list[ModelSpec]:
            plain = spec(f"{name}@{self.version}")
            return [Counted(plain.key, plain.format, plain.source, plain.location, 1)]

    source = Many()
    registry = Registry(source)

    def change() -> None:
        source.version = "2"
        for number in range(names):
            registry.look(f"m{number}")
        taken.clear()

    source.on_scan = change
    registry.refresh()
    assert registry.snapshot.versions("m0") == ("2",)
    assert registry.snapshot.versions(f"m{models - 1}") == ("1",)
    assert taken[None] < models * names / 2


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


def test_it_is_made_from_the_settings(tmp_path: Path) -> None:
    """Own models come before official ones of the same name."""
    put(tmp_path, "yolo11n/1")
    args = AppArgs(
        repository=tmp_path, official_models=("yolo11n", "yolo26n"), official_url="http://mirror"
    )
    registry = Registry.from_settings(args)
    registry.refresh()
    assert [str(entry.key) for entry in registry.snapshot.specs] == [
        "yolo11n@1",
        "yolo11n@v8.4.0",
        "yolo26n@v8.4.0",
    ]
    assert str(registry.snapshot.resolve(ModelRef("yolo11n"))) == "yolo11n@1"
    assert registry.snapshot.specs[2].location.startswith("http://mirror/")
