"""The batcher refuses what would come too late, as early as it can know."""

import asyncio

import pytest

from serve_app.errors import (
    DeadlineExceededError,
    OverloadedError,
)
from tests.unit.replica.batcher_bench import Bench, keep_busy, numbers
from tests.unit.replica.fakes import (
    SIDE,
    FakeModel,
    picture,
    until,
)

INPUT_BYTES = 3 * SIDE * SIDE
BATCHES_PAY = (0.01, 0.01, 0.01)


async def test_what_is_too_late_is_refused_before_work_is_spent_on_it(bench: Bench) -> None:
    """In either queue."""
    bench.start(max_bytes=1)
    model = FakeModel(seconds=(1.0,))
    busy = await keep_busy(bench, model)
    bench.clock.now += 1.0
    decoding_blocked = bench.ask(model, picture(1))  # the bound lets nothing in
    await asyncio.sleep(0)
    hopeless = bench.ask(model, picture(2), left_s=0.5)
    with pytest.raises(DeadlineExceededError, match="allow more time"):
        await hopeless
    model.opened.set()
    await asyncio.gather(busy, decoding_blocked)
    assert model.batches == [[99], [1]]
    assert "decoded m 2" not in model.log


async def test_what_would_wait_for_too_long_is_refused_at_once(bench: Bench) -> None:
    """With the time after which there is room; another model's picture does not have to wait."""
    bench.start()
    model, other = FakeModel(seconds=(1.0,)), FakeModel("other", seconds=(1.0,))
    busy = await keep_busy(bench, model)
    waiting = [bench.ask(model, picture(number)) for number in range(4)]
    await bench.until_ready(4)
    with pytest.raises(OverloadedError, match="4 pictures wait for model m@1") as caught:
        await bench.ask(model, picture(5), left_s=3.5)
    assert caught.value.retry_after_s == pytest.approx(1.5)
    enough = bench.ask(model, picture(6), left_s=5.5)
    rare = bench.ask(other, picture(7), left_s=3.5)
    await bench.until_ready(6)
    model.opened.set()
    await asyncio.gather(busy, *waiting, enough, rare)
    assert [6] in model.batches
    assert other.batches == [[7]]


async def test_what_became_too_late_while_it_waited_is_refused(bench: Bench) -> None:
    """Its time went by in the queue of the stream."""
    bench.start()
    model = FakeModel(seconds=(1.0,))
    busy = await keep_busy(bench, model)
    task = bench.ask(model, picture(1), left_s=5.0)
    await bench.until_ready(1)
    bench.clock.now += 4.5
    model.opened.set()
    with pytest.raises(DeadlineExceededError, match="after 4.50 s"):
        await task
    await busy
    assert model.batches == [[99]]


async def test_one_slow_batch_does_not_refuse_for_ever(bench: Bench) -> None:
    """What is expected is doubted a little with each refusal."""
    bench.start()
    model = FakeModel()
    busy = await keep_busy(bench, model)
    bench.clock.now += 60.0  # as if it took a minute
    model.opened.set()
    await busy
    refused = 0
    for _ in range(100):
        try:
            await bench.ask(model, picture(1), left_s=1.0)
            break
        except DeadlineExceededError:
            refused += 1
    assert 0 < refused < 100


@pytest.mark.parametrize("kind", ["annotated", "failed"])
async def test_odd_batches_teach_nothing(bench: Bench, kind: str) -> None:
    """Drawing a large picture takes a second, which the next one will not take."""
    bench.start()
    model = FakeModel(seconds=(0.1,))
    model.opened.clear()
    if kind == "failed":
        model.failures[1] = OverloadedError("too many findings")
    slow = bench.ask(model, picture(1), annotate=kind == "annotated")
    await asyncio.sleep(0)
    await asyncio.to_thread(until, lambda: model.running == 1)
    bench.clock.now += 60.0  # as if it took a minute
    model.opened.set()
    await asyncio.gather(slow, return_exceptions=True)
    assert numbers(await bench.ask(model, picture(2), left_s=1.0)) == [2]
