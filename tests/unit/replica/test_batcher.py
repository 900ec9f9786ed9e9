"""The batcher brings every picture to one end, fairly, in time and within its bytes."""

import asyncio
import itertools
import threading

import pytest

from serve_app.engines.streams import Streams
from serve_app.errors import (
    InvalidImageError,
    ModelBrokenError,
    OverloadedError,
    ReplicaFailingError,
)
from serve_app.replica.batcher import Batcher
from serve_app.types import ImageArray
from tests.unit.replica.batcher_bench import Bench, keep_busy, numbers
from tests.unit.replica.fakes import (
    BROKEN,
    ROW_BYTES,
    SIDE,
    FakeModel,
    decode,
    decoded_bytes,
    picture,
    until,
)

INPUT_BYTES = 3 * SIDE * SIDE
BATCHES_PAY = (0.01, 0.01, 0.01)


async def test_pictures_are_answered_in_their_order(bench: Bench) -> None:
    """By their own model, whoever else asks."""
    bench.start(streams=2)
    models = [FakeModel("a", seconds=BATCHES_PAY), FakeModel("b")]
    tasks = [bench.ask(m, *map(picture, range(n, n + 7))) for n in range(5) for m in models]
    for index, answered in enumerate(await asyncio.gather(*tasks)):
        assert numbers(answered) == list(range(index // 2, index // 2 + 7))
    for model in models:
        assert sorted(itertools.chain.from_iterable(model.batches)) == sorted(
            [*range(7), *range(1, 8), *range(2, 9), *range(3, 10), *range(4, 11)]
        )


async def test_a_batch_is_formed_when_the_engine_is_free(bench: Bench) -> None:
    """Of what waits then, up to the profile's size, of several requests and of one shape."""
    bench.start()
    model = FakeModel(seconds=BATCHES_PAY)
    tasks = [await keep_busy(bench, model)]
    tasks += [
        bench.ask(model, picture(1), picture(2)),
        bench.ask(model, picture(3), imgsz=(64, 32)),
        bench.ask(model, picture(4)),
    ]
    await bench.until_ready(4)
    assert model.batches == [[99]]
    model.opened.set()
    await asyncio.gather(*tasks)
    assert sorted(map(sorted, model.batches)) == [[1, 2, 4], [3], [99]]


async def test_without_a_profile_pictures_go_alone(bench: Bench) -> None:
    """As they come."""
    bench.start()
    model = FakeModel()
    busy = await keep_busy(bench, model)
    task = bench.ask(model, picture(1), picture(2))
    await bench.until_ready(2)
    model.opened.set()
    await asyncio.gather(busy, task)
    assert all(len(batch) == 1 for batch in model.batches)


async def test_a_rare_models_picture_is_the_next_to_run(bench: Bench) -> None:
    """However many of a hot model are ready."""
    bench.start()
    log: list[str] = []
    hot, rare = FakeModel("hot", log, seconds=(1.0,)), FakeModel("rare", log)
    first = await keep_busy(bench, hot)
    many = bench.ask(hot, *map(picture, range(30)))
    one = bench.ask(rare, picture(7))
    await bench.until_ready(31)
    hot.opened.set()
    await asyncio.gather(first, many, one)
    assert [line for line in log if line.startswith("ran")][1] == "ran rare 7"


async def test_a_rare_models_picture_is_the_next_to_be_decoded(bench: Bench) -> None:
    """However many of a hot model wait, and although the decoded ones take all room."""
    bench.start(max_bytes=6 * (ROW_BYTES + INPUT_BYTES))
    log: list[str] = []
    hot, rare = FakeModel("hot", log, seconds=(1.0,)), FakeModel("rare", log)
    first = await keep_busy(bench, hot)
    many = bench.ask(hot, *map(picture, range(60)))
    await asyncio.sleep(0)

    def full() -> bool:
        ready = bench.batcher.ready
        return ready >= 5 and bench.batcher.undecoded == 60 - ready - 2  # two wait for room

    await asyncio.to_thread(until, full)
    before = sum(line.startswith("decoded") for line in log)
    one = bench.ask(rare, picture(7))
    await asyncio.sleep(0)
    hot.opened.set()
    await asyncio.gather(first, many, one)
    decoded = [line for line in log if line.startswith("decoded")]
    assert decoded.index("decoded rare 7") <= before + 2


async def test_a_late_event_loop_idles_no_stream(bench: Bench) -> None:
    """Threads hand pictures on to each other."""
    bench.start()
    model = FakeModel()
    task = bench.ask(model, *map(picture, range(5)))
    await asyncio.sleep(0)
    until(lambda: len(model.batches) == 5)  # blocks the event loop
    assert numbers(await task) == list(range(5))


async def test_an_error_of_one_picture_is_its_own(bench: Bench) -> None:
    """Others of the same batch are answered."""
    bench.start()
    model = FakeModel(seconds=BATCHES_PAY)
    model.failures[1] = OverloadedError("too many findings")
    busy = await keep_busy(bench, model)
    bad, good = bench.ask(model, picture(1)), bench.ask(model, picture(2))
    await bench.until_ready(2)
    model.opened.set()
    with pytest.raises(OverloadedError, match="findings"):
        await bad
    assert numbers(await good) == [2]
    assert sorted(model.batches[1]) == [1, 2]
    await busy


async def test_a_batch_that_fails_is_run_one_by_one(bench: Bench) -> None:
    """Each picture is answered as if alone."""
    bench.start()
    model = FakeModel(seconds=BATCHES_PAY)
    model.breaks = lambda numbers: ModelBrokenError("bad") if 1 in numbers else None
    busy = await keep_busy(bench, model)
    bad, good = bench.ask(model, picture(1)), bench.ask(model, picture(2))
    await bench.until_ready(2)
    model.opened.set()
    with pytest.raises(ModelBrokenError):
        await bad
    assert numbers(await good) == [2]
    await busy


async def test_the_first_error_ends_the_request(bench: Bench) -> None:
    """Its other pictures are dropped, others' are not."""
    bench.start()
    model = FakeModel()
    busy = await keep_busy(bench, model)
    bad = bench.ask(model, picture(1), BROKEN, picture(2))
    good = bench.ask(model, picture(3))
    with pytest.raises(InvalidImageError):
        await bad
    await bench.until_ready(1)
    model.opened.set()
    assert numbers(await good) == [3]
    assert model.batches == [[99], [3]]
    await busy


@pytest.mark.parametrize("data", [b"1 1 1", b"1"])
async def test_an_unexpected_error_in_decoding_is_the_pictures(bench: Bench, data: bytes) -> None:
    """In reading its size or its pixels; it ends no thread."""
    bench.start()
    with pytest.raises(InvalidImageError, match="ValueError|IndexError"):
        await bench.ask(FakeModel(), data)
    assert numbers(await bench.ask(FakeModel(), picture(1))) == [1]


async def test_decoded_pictures_of_a_cancelled_request_are_dropped_at_once(bench: Bench) -> None:
    """Their bytes too, without waiting for a stream; they are never run."""
    bench.start()
    model = FakeModel()
    busy = await keep_busy(bench, model)
    held = bench.batcher.held_bytes
    task = bench.ask(model, picture(1, rows=1000), picture(2))
    await bench.until_ready(2)
    assert bench.batcher.held_bytes == held + 1001 * ROW_BYTES + 2 * INPUT_BYTES
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.batcher.held_bytes == held
    assert bench.batcher.ready == 0
    model.opened.set()
    await busy
    assert model.batches == [[99]]


async def test_a_cancelled_request_waits_for_its_running_batch(bench: Bench) -> None:
    """However often it is cancelled: the model is in use."""
    bench.start()
    model = FakeModel()
    busy = await keep_busy(bench, model)
    for _ in range(3):
        busy.cancel()
        await asyncio.sleep(0)
        assert not busy.done()
    model.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await busy
    assert model.running == 0


async def test_an_overestimated_picture_gives_back_what_it_did_not_take(bench: Bench) -> None:
    """Of some kinds only the most that they may take is known before."""
    streams = bench.streams = Streams(1, 1)
    bench.batcher = Batcher(streams, decode, lambda data: 9 * decoded_bytes(data))
    model = FakeModel()
    busy = await keep_busy(bench, model)
    assert bench.batcher.held_bytes == ROW_BYTES + INPUT_BYTES
    model.opened.set()
    await busy


async def test_waiting_is_measured(bench: Bench) -> None:
    """In both queues together; preprocessing includes the decoding."""
    bench.start()
    model = FakeModel()
    busy = await keep_busy(bench, model)
    task = bench.ask(model, picture(1))
    await bench.until_ready(1)
    bench.clock.now += 3.0
    model.opened.set()
    (answered,) = await task
    assert answered.waited_s == 3.0
    assert dict(answered.result.speed_ms) == {
        "preprocess": 2.0,
        "inference": 3.0,
        "postprocess": 1.0,
    }
    await busy


async def test_decoding_ahead_is_bounded_in_bytes(bench: Bench) -> None:
    """A large picture waits for room, but small ones do not pass it for ever."""
    bench.start(max_bytes=10 * ROW_BYTES + 2 * INPUT_BYTES)
    model = FakeModel()
    busy = await keep_busy(bench, model)  # holds 1 row and 1 input
    large = bench.ask(model, picture(1, rows=20))
    await asyncio.to_thread(until, lambda: len(bench.batcher._room_line) == 1)
    small = [bench.ask(model, picture(number)) for number in range(2, 9)]
    await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0.001)
        # Each of the two decoders may go over by the input that it has just made.
        assert bench.batcher.held_bytes <= 10 * ROW_BYTES + 4 * INPUT_BYTES
    assert "decoded m 1" not in model.log
    model.opened.set()
    await asyncio.gather(busy, large, *small)
    order = [line for line in model.log if line.startswith("ran")]
    # Its thread may be held up after it has its room, while the other one makes a few more.
    assert order.index("ran m 1") <= 5


async def test_a_picture_given_up_while_it_is_decoded_lets_the_next_one_in(bench: Bench) -> None:
    """Its bytes are free once its thread is done with it, and who waits for them is told."""
    begun, go_on = threading.Event(), threading.Event()

    def decode_slowly(data: bytes) -> ImageArray:
        if data == picture(1, rows=8):
            begun.set()
            assert go_on.wait(10)
        return decode(data)

    streams = bench.streams = Streams(1, 1)
    bench.batcher = Batcher(streams, decode_slowly, decoded_bytes, max_decoded_bytes=10 * ROW_BYTES)
    model = FakeModel()
    first = bench.ask(model, picture(1, rows=8))
    await asyncio.to_thread(begun.wait, 10)
    second = bench.ask(model, picture(2, rows=8))
    await asyncio.to_thread(until, lambda: len(bench.batcher._room_line) == 1)
    first.cancel()
    await asyncio.sleep(0)
    # Whoever is told of the withdrawal looks for room before there is any.
    await asyncio.to_thread(until, lambda: len(vars(bench.batcher._room)["_waiters"]) == 1)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert numbers(await asyncio.wait_for(second, 10)) == [2]


async def test_a_cancelled_request_leaves_the_line_for_room(bench: Bench) -> None:
    """What waits for room in a decoder thread goes away, and lets others in."""
    bench.start(max_bytes=10 * ROW_BYTES + 4 * INPUT_BYTES)
    model = FakeModel()
    busy = await keep_busy(bench, model)
    large = bench.ask(model, picture(1, rows=100))
    await asyncio.sleep(0)
    await asyncio.to_thread(until, lambda: bench.batcher.undecoded == 0)
    small = bench.ask(model, picture(2))
    await asyncio.sleep(0)
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large
    await bench.until_ready(1)
    model.opened.set()
    assert numbers(await small) == [2]
    await busy


async def test_closing_refuses_what_waits(bench: Bench) -> None:
    """What runs is answered; the decoder threads end; nothing is taken any more."""
    bench.start()
    model = FakeModel()
    busy = await keep_busy(bench, model)
    waiting = bench.ask(model, picture(1))
    await bench.until_ready(1)
    await bench.batcher.aclose()
    with pytest.raises(ReplicaFailingError, match="shutting down"):
        await waiting
    with pytest.raises(ReplicaFailingError, match="shutting down"):
        await bench.ask(model, picture(2))
    model.opened.set()
    assert numbers(await busy) == [99]
    assert not [t for t in threading.enumerate() if t.name.startswith("decoder")]


async def test_no_pictures_are_no_answers(bench: Bench) -> None:
    """At once."""
    bench.start()
    assert await bench.ask(FakeModel()) == []


@pytest.mark.parametrize("turns", range(12))
async def test_cancelled_anywhere_nothing_is_left(bench: Bench, turns: int) -> None:
    """The fixture checks the bytes; the model is not in use afterwards."""
    bench.start(streams=2)
    model = FakeModel()
    task = bench.ask(model, *map(picture, range(6)))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert model.running == 0
    assert bench.batcher.ready == bench.batcher.undecoded == 0
