"""The registry on an event loop: no request waits for the disk without need."""

import asyncio
import threading

import pytest

from serve_app.errors import ModelNotFoundError, SourceUnavailableError
from serve_app.registry import live
from serve_app.registry.catalog import Registry
from serve_app.registry.live import AsyncRegistry
from serve_app.registry.pace import Pace
from serve_app.types import ModelKey, ModelRef
from tests.unit.registry.support import Clock, FakeSource


class Fixture:
    """A registry of one source; `gate` holds up its scans while it is clear."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.gate = threading.Event()
        self.gate.set()
        self.source = FakeSource(["a@1"], on_scan=self._wait)
        self.registry = AsyncRegistry(
            Registry(self.source, refresh_interval_s=2.0, clock=self.clock)
        )

    def _wait(self) -> None:
        assert self.gate.wait(5)


async def _settled(fixture: Fixture, scans: int) -> None:
    """Wait until so many scans are done."""
    async with asyncio.timeout(5):
        # Polled, since the scan ends in a thread.
        while fixture.source.scans < scans or fixture.registry.scanning:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_the_first_lookup_does_not_wait_for_the_first_scan() -> None:
    """Of 10,000 models it takes seconds; one name is looked at once for all who ask for it."""
    fixture = Fixture()
    fixture.gate.clear()
    keys = await asyncio.gather(*(fixture.registry.resolve(ModelRef("a")) for _ in range(20)))
    assert set(keys) == {ModelKey("a", "1")}
    assert fixture.source.looks == ["a"]
    assert (await fixture.registry.spec(keys[0])).key == keys[0]
    fixture.gate.set()
    assert len(await fixture.registry.list()) == 1
    assert fixture.source.scans == 1


async def test_the_first_scan_can_begin_before_anybody_asks() -> None:
    """Then nobody starts another."""
    fixture = Fixture()
    fixture.registry.begin()
    assert fixture.registry.scanning
    await _settled(fixture, 1)
    assert await fixture.registry.resolve(ModelRef("a")) == ModelKey("a", "1")
    assert (fixture.source.scans, fixture.source.looks) == (1, [])


async def test_a_name_that_is_unknown_at_the_start_is_refused_with_what_there_is() -> None:
    """So that request waits for the first scan."""
    fixture = Fixture()
    with pytest.raises(ModelNotFoundError, match="did you mean a"):
        await fixture.registry.resolve(ModelRef("aa"))
    assert fixture.source.scans == 1


async def test_under_steady_load_nobody_waits() -> None:
    """Old news is answered at once while the next scan runs."""
    fixture = Fixture()
    await fixture.registry.resolve(ModelRef("a"))
    fixture.source.keys = ["a@1", "a@2"]
    fixture.clock.now += 2.5
    fixture.gate.clear()
    assert await fixture.registry.resolve(ModelRef("a")) == ModelKey("a", "1")
    fixture.gate.set()
    await _settled(fixture, 2)
    assert await fixture.registry.resolve(ModelRef("a")) == ModelKey("a", "2")
    assert fixture.source.scans == 2


async def test_after_a_pause_the_first_lookup_looks() -> None:
    """A version that was added an hour ago is not missed, and no scan is waited for."""
    fixture = Fixture()
    await fixture.registry.list()
    fixture.source.keys = ["a@2", "b@1"]
    fixture.clock.now += 3600
    fixture.gate.clear()
    assert await fixture.registry.resolve(ModelRef("a")) == ModelKey("a", "2")
    fixture.gate.set()
    assert len(await fixture.registry.list()) == 2


async def test_a_new_model_is_found_on_its_first_request() -> None:
    """However recent and however slow the last scan was; so is a new version."""
    fixture = Fixture()
    await fixture.registry.list()
    fixture.source.keys += ["b@1", "a@2"]
    assert await fixture.registry.resolve(ModelRef("b")) == ModelKey("b", "1")
    assert await fixture.registry.resolve(ModelRef("a", "2")) == ModelKey("a", "2")
    assert fixture.source.scans == 1


async def test_a_flood_of_misses_starts_no_scan() -> None:
    """Each of a thousand unknown names is looked at, and that is all."""
    fixture = Fixture()
    await fixture.registry.list()
    fixture.clock.now += 1
    calls = (fixture.registry.resolve(ModelRef(f"x{number}")) for number in range(1000))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, ModelNotFoundError) for answer in answers)
    assert len(fixture.source.looks) == 1000
    assert fixture.source.scans == 1


async def test_a_cancelled_listing_does_not_end_the_scan() -> None:
    """Others wait for the same one."""
    fixture = Fixture()
    fixture.gate.clear()
    first = asyncio.create_task(fixture.registry.list())
    second = asyncio.create_task(fixture.registry.list())
    await asyncio.sleep(0)
    first.cancel()
    fixture.gate.set()
    assert [entry.key for entry in await second] == [ModelKey("a", "1")]
    assert fixture.source.scans == 1


async def test_a_cancelled_lookup_does_not_end_the_look() -> None:
    """Others wait for the same one."""
    fixture = Fixture()
    first = asyncio.create_task(fixture.registry.resolve(ModelRef("a")))
    second = asyncio.create_task(fixture.registry.resolve(ModelRef("a")))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == ModelKey("a", "1")
    assert fixture.source.looks == ["a"]


async def test_a_look_beside_is_waited_for_by_nobody() -> None:
    """It is shared all the same, and what it finds is known afterwards."""
    fixture = Fixture()
    await fixture.registry.list()
    fixture.source.keys = ["a@1", "a@2"]
    for _ in range(3):
        fixture.registry.look_soon("a")
    assert fixture.registry.versions("a") == ("1",)
    async with asyncio.timeout(5):
        while fixture.registry.versions("a") != ("1", "2"):  # noqa: ASYNC110 - a thread looks
            await asyncio.sleep(0)
    assert fixture.source.looks == ["a"]


async def test_a_loader_finds_what_another_process_has_just_found() -> None:
    """And that what it has just found is gone: it looks for itself, each time."""
    fixture = Fixture()
    await fixture.registry.list()
    fixture.source.keys = ["a@1", "b@1"]
    new = ModelKey("b", "1")
    assert (await fixture.registry.current_spec(new)).key == new
    assert fixture.source.scans == 1
    fixture.source.keys = ["a@1"]
    with pytest.raises(ModelNotFoundError):
        await fixture.registry.current_spec(new)


async def test_a_loader_starts_no_scan() -> None:
    """It knows what it wants; a scan would compete with the load that the look is for."""
    fixture = Fixture()
    await fixture.registry.list()
    fixture.clock.now += 3600
    await fixture.registry.current_spec(ModelKey("a", "1"))
    assert not fixture.registry.scanning
    assert fixture.source.scans == 1


async def test_a_disk_that_hangs_keeps_nobody_from_what_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One waits for news a moment, and none after that one; a list shows what was seen last."""
    monkeypatch.setattr(live, "_NEWS_S", 0.02)
    monkeypatch.setattr(live, "_SCAN_S", 0.02)
    fixture = Fixture()
    await fixture.registry.list()
    fixture.clock.now += 3600
    fixture.gate.clear()
    fixture.source.on_look = fixture.source.on_scan
    for _ in range(3):
        assert await fixture.registry.resolve(ModelRef("a")) == ModelKey("a", "1")
    assert fixture.source.looks == ["a"]
    assert len(await fixture.registry.list()) == 1
    fixture.gate.set()
    await _settled(fixture, 2)


async def test_one_folder_that_hangs_hides_no_news_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody waits for news then, but it is looked for."""
    monkeypatch.setattr(live, "_NEWS_S", 0.02)
    fixture = Fixture()
    fixture.source.keys = ["a@1", "b@1"]
    await fixture.registry.list()
    fixture.clock.now += 3600
    fixture.gate.clear()
    fixture.source.on_look = fixture.source.on_scan
    await fixture.registry.resolve(ModelRef("a"))
    fixture.source.on_look = lambda: None
    fixture.source.keys = ["a@1", "b@1", "b@2"]
    await fixture.registry.resolve(ModelRef("b"))
    async with asyncio.timeout(5):
        while (await fixture.registry.resolve(ModelRef("b"))).version != "2":  # noqa: ASYNC110 - a thread looks
            await asyncio.sleep(0.001)
    fixture.gate.set()
    await _settled(fixture, 2)


async def test_unknown_names_do_not_pile_up_while_the_disk_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those beyond a bound are refused, since nobody can tell."""
    monkeypatch.setattr(live, "_NEWS_S", 0.02)
    monkeypatch.setattr(live, "_MOST_LOOKS", 8)
    fixture = Fixture()
    await fixture.registry.list()
    fixture.gate.clear()
    fixture.source.on_look = fixture.source.on_scan
    waiting = [asyncio.create_task(fixture.registry.resolve(ModelRef(f"x{n}"))) for n in range(8)]
    await asyncio.sleep(0.05)
    with pytest.raises(SourceUnavailableError, match="does not answer"):
        await fixture.registry.resolve(ModelRef("y"))
    fixture.gate.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(answer, ModelNotFoundError) for answer in answers)
    with pytest.raises(ModelNotFoundError):
        await fixture.registry.resolve(ModelRef("y"))


@pytest.mark.parametrize("urgent", [True, False])
async def test_a_scan_rests_unless_somebody_waits_for_it(urgent: bool) -> None:
    """A client that lists models does, the preparer does not."""
    rests: list[float] = []
    ticks = iter(range(100))
    pace = Pace(lambda: float(next(ticks)), rests.append)
    clock = Clock()
    registry = AsyncRegistry(Registry(FakeSource(["a@1", "b@1"]), clock=clock, pace=pace))
    assert len(await registry.list(urgent=urgent)) == 2
    assert len(rests) == (0 if urgent else 2)
    rests.clear()
    clock.now += 3600
    await registry.list(urgent=False)
    assert len(rests) == 2, "a hurry is for one scan"
