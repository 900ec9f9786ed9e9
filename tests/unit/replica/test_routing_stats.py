"""What the replica measures for routers: from answers, rounded, bounded."""

import json
from collections.abc import Collection

import pytest

from serve_app.replica.routing_stats import RoutingMeter
from serve_app.routing.stats import MAX_PARKED, RoutingStats
from serve_app.types import ImageResult, ModelKey, PredictResult, ResidentModel, Task

A, B = ModelKey("a", "1"), ModelKey("b", "1")
GIB = 2**30


class Clock:
    """Time that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        """Return it in seconds."""
        return self.now


class Prepared:
    """What a preparer would have prepared."""

    def __init__(self, *keys: ModelKey) -> None:
        self.keys: frozenset[ModelKey] | None = frozenset(keys)
        self.settled = len(keys)
        self.asked = 0

    def prepared(self) -> Collection[ModelKey] | None:
        """Return the keys."""
        self.asked += 1
        return self.keys


def answer(
    key: ModelKey, *inference_ms: float, load_ms: float | None = None, postprocess_ms: float = 0.0
) -> PredictResult:
    """An answer to one picture for each of the times."""
    images = tuple(
        ImageResult(
            shape=(1, 1),
            class_id=None,  # type: ignore[arg-type]
            confidence=None,  # type: ignore[arg-type]
            speed_ms={"preprocess": 99.0, "inference": one, "postprocess": postprocess_ms},
        )
        for one in inference_ms
    )
    return PredictResult(
        key=key,
        task=Task.DETECT,
        names={},
        images=images,
        cold=load_ms is not None,
        load_ms=load_ms,
        queue_ms=0.0,
    )


def told(meter: RoutingMeter, used_bytes: int = 0) -> RoutingStats:
    """Return what routers would be told."""
    return meter.stats(
        budget_bytes=GIB,
        used_bytes=used_bytes,
        max_models=None,
        advertised=frozenset(),
        models=(),
        parked=(),
    )


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


def test_the_share_that_a_model_takes(clock: Clock) -> None:
    """20 requests of 30 ms a second keep one of two streams busy for 0.6: 0.3 of the replica."""
    meter = RoutingMeter(2, Prepared(), clock)
    for turn in range(400):
        clock.now += 0.05
        meter.answered(answer(A, 29.0 + turn / 1e6, postprocess_ms=1.0))
    stats = told(meter)
    assert stats.busy == {"a@1": 0.3}
    assert stats.request_s == 0.015  # two at a time

    clock.now += 30.0
    assert told(meter).busy == {}
    assert not meter._work_s


def test_a_batch_is_charged_once(clock: Clock) -> None:
    """Its pictures all have the batch's time, be they of one request or of several."""
    alone, together = RoutingMeter(1, Prepared(), clock), RoutingMeter(1, Prepared(), clock)
    for turn in range(40):
        clock.now += 0.1
        alone.answered(answer(A, 40.0 + turn / 1e6))
        for _ in range(4):
            together.answered(answer(A, 40.0 + turn / 1e6, 40.0 + turn / 1e6))
    assert told(together).busy == told(alone).busy
    assert told(together).request_s == pytest.approx(told(alone).request_s / 4, rel=0.2)


async def test_a_load_counts_once_however_many_waited(clock: Clock) -> None:
    """And only where it came from prepared weights."""
    prepared = Prepared(A)
    meter = RoutingMeter(1, prepared, clock)
    await meter.refresh()
    meter.answered(answer(A, 1.0, load_ms=100.0))
    for _ in range(50):
        meter.answered(answer(A, 1.0, load_ms=300.0))
    assert told(meter).load_s == 0.12  # 100 ms, and once a tenth of the way to 300 ms
    meter.answered(answer(B, 1.0, load_ms=9000.0))
    assert told(meter).load_s == 0.12


def test_free_bytes_and_loading(clock: Clock) -> None:
    """Free is rounded down; what is advertised and not resident is loading."""
    meter = RoutingMeter(1, Prepared(), clock)
    stats = meter.stats(
        budget_bytes=3200,
        used_bytes=101,
        max_models=None,
        advertised={"a@1", "b@1"},
        models=[
            ResidentModel("a@1", "resident", 30, 0, pinned=False, idle_s=0.0),
            ResidentModel("b@1", "loading", 0, 0, pinned=False, idle_s=0.0),
            ResidentModel("c@1", "resident", 50, 0, pinned=False, idle_s=0.0),
        ],
        parked=[A, ModelKey("z", "1")],
    )
    assert (stats.budget_bytes, stats.free_bytes, stats.model_bytes) == (3200, 3000, 40)
    assert stats.loading == {"b@1"}
    assert stats.parked == {"z@1"}
    assert RoutingStats.from_wire(json.loads(json.dumps(stats.to_wire()))) == stats


@pytest.mark.parametrize(
    ("max_models", "room_bytes"), [(None, 2400), (3, 2400), (2, 0)], ids=["any", "three", "two"]
)
def test_what_pins_leave(clock: Clock, max_models: int | None, room_bytes: int) -> None:
    """Whatever is not pinned could go; what models share stays; pins may take every place."""
    stats = RoutingMeter(1, Prepared(), clock).stats(
        budget_bytes=3200,
        used_bytes=3150,
        max_models=max_models,
        advertised=frozenset(),
        models=[
            ResidentModel("a@1", "resident", 500, 0, pinned=True, idle_s=0.0),
            ResidentModel("b@1", "loading", 200, 0, pinned=True, idle_s=0.0),
            ResidentModel("c@1", "resident", 2400, 1, pinned=False, idle_s=0.0),
        ],
        parked=[ModelKey(f"m{index}", "1") for index in range(300)],
    )
    assert stats.free_bytes == 0
    assert stats.room_bytes == room_bytes
    assert len(stats.parked) == MAX_PARKED
    assert "m299@1" in stats.parked, "the last used"


async def test_what_is_prepared_is_told_now_and_then(clock: Clock) -> None:
    """A filter of 10,000 ids is not made for each of them."""
    prepared = Prepared(A)
    meter = RoutingMeter(1, prepared, clock)
    await meter.refresh()
    first = told(meter).prepared
    assert first is not None
    assert "a@1" in first
    assert "b@1" not in first
    prepared.keys, prepared.settled = frozenset({A, B}), 2
    await meter.refresh()
    assert told(meter).prepared is first
    clock.now += 5.0
    await meter.refresh()
    later = told(meter).prepared
    assert later is not None
    assert "b@1" in later
    clock.now += 5.0
    await meter.refresh()
    assert prepared.asked == 2  # nothing new


async def test_where_nothing_is_ever_prepared_nothing_is_told(clock: Clock) -> None:
    """Then all replicas are alike, and every load counts."""
    prepared = Prepared()
    prepared.keys = None
    meter = RoutingMeter(1, prepared, clock)
    await meter.refresh()
    assert told(meter).prepared is None
    meter.answered(answer(A, 1.0, load_ms=200.0))
    assert told(meter).load_s == 0.2
