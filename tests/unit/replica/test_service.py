"""A replica answers: right model, right order, and nothing is left after a failure."""

import asyncio
import gc
import itertools

import numpy as np
import pytest

from serve_app.cache import CacheLimits
from serve_app.engines.memory import resident_bytes
from serve_app.errors import InvalidImageError, InvalidParameterError, ModelBrokenError
from serve_app.types import ImageResult, ModelKey, PredictParams, PredictRequest
from tests.support.checkpoints import BUS, reference
from tests.support.climb import Climb
from tests.unit.replica.conftest import MODELS, Replica
from tests.unit.replica.fakes import png

PARAMS = PredictParams(conf=0.05, imgsz=(96, 96))


def _request(name: str, *images: bytes, params: PredictParams = PARAMS) -> PredictRequest:
    return PredictRequest(ModelKey(name, "1"), images, params, timeout_s=30.0)


def _same(one: ImageResult, other: ImageResult) -> bool:
    """Whether both are one model's: a batch of another size rounds in another order."""
    assert one.boxes is not None
    assert other.boxes is not None
    return np.array_equal(one.class_id, other.class_id) and np.allclose(
        one.boxes, other.boxes, atol=1e-2
    )


async def test_answers_are_those_of_ultralytics(replica: Replica) -> None:
    """From encoded bytes to boxes the result is that of `YOLO(path).predict`."""
    result = await replica.service.predict(_request("first", BUS.read_bytes()))
    expected = reference(
        replica.repository / "first/1/model.pt", BUS, conf=0.05, imgsz=96, device="cpu"
    )
    boxes = result.images[0].boxes
    assert boxes is not None
    assert len(boxes) > 0
    np.testing.assert_allclose(boxes, expected.boxes.xyxy.numpy(), atol=1e-2)


async def test_first_is_cold_then_warm(replica: Replica) -> None:
    """The phases and the cold flag say what happened."""
    first = await replica.service.predict(_request("first", png(1)))
    assert first.cold
    assert first.load_ms is not None
    assert first.load_ms > 0
    assert set(first.phases_s) == {"queue", "load", "preprocess", "inference", "postprocess"}
    second = await replica.service.predict(_request("first", png(1)))
    assert not second.cold
    assert second.load_ms is None
    assert _same(first.images[0], second.images[0])


async def test_pictures_come_back_in_their_order(replica: Replica) -> None:
    """Several pictures of one request are answered as if each were alone."""
    pictures = [png(shade) for shade in range(4)]
    together = await replica.service.predict(_request("first", *pictures))
    for picture, found in zip(pictures, together.images, strict=True):
        alone = await replica.service.predict(_request("first", picture))
        assert _same(found, alone.images[0])


async def test_concurrent_requests_get_their_own_models_answers(replica: Replica) -> None:
    """Models that share a graph, asked at once with room for one, are never mixed up."""
    expected = {
        name: (await replica.service.predict(_request(name, png(5)))).images[0] for name in MODELS
    }
    assert not _same(expected["first"], expected["second"])
    replica.cache.reconfigure(CacheLimits(2**30, max_models=1))
    names = list(MODELS) * 8
    results = await asyncio.gather(
        *(replica.service.predict(_request(name, png(5))) for name in names)
    )
    for name, result in zip(names, results, strict=True):
        assert result.key.name == name
        assert _same(result.images[0], expected[name])


async def test_failures_leave_nothing_behind(replica: Replica) -> None:
    """A bad picture, parameter or model is told as such; no lease and no entry stays."""
    with pytest.raises(InvalidImageError):
        await replica.service.predict(_request("first", png(1)[:100]))
    with pytest.raises(InvalidParameterError, match="classes"):
        await replica.service.predict(
            _request("first", png(1), params=PredictParams(classes=(99,)))
        )
    with pytest.raises(ModelBrokenError):
        await replica.service.predict(_request("broken", png(1)))
    assert [model.key for model in replica.cache.snapshot()] == ["first@1"]
    assert [model.leases for model in replica.cache.snapshot()] == [0]


async def test_a_cancelled_request_gives_its_lease_back(replica: Replica) -> None:
    """Wherever a client leaves, the lease ends."""
    await replica.service.predict(_request("first", png(1)))
    for turns in range(12):
        task = asyncio.create_task(replica.service.predict(_request("first", png(1), png(2))))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [model.leases for model in replica.cache.snapshot()] == [0]


@pytest.mark.alone
async def test_evictions_return_the_memory(replica: Replica) -> None:
    """The whole way of loads and evictions leaves the resident set where it was."""
    replica.cache.reconfigure(CacheLimits(2**30, max_models=1))
    # A model that stayed would add 400 kB per load.
    climb = Climb(limit=4096)
    for cycle in itertools.count():
        name = ("first", "third")[cycle % 2]
        result = await replica.service.predict(_request(name, png(1)))
        assert result.cold
        if cycle == 40:
            gc.collect()
        if climb.add(resident_bytes()):
            break
    assert climb.settled, f"the resident set climbs by {climb.rates} bytes per load"
    assert len(replica.cache.snapshot()) == 1
