"""A model whose loads keep failing is set aside, tried again later, and forgotten once it loads."""

from collections.abc import Callable

import pytest

from serve_app.cache import CacheLimits, ModelCache
from serve_app.cache.quarantine import LONGEST_PAUSE_S, Quarantine
from serve_app.errors import (
    DeadlineExceededError,
    ModelBrokenError,
    OverloadedError,
    ServeAppError,
    SourceUnavailableError,
)
from serve_app.types import ModelKey, SetAside
from tests.unit.cache.fakes import (
    A,
    B,
    Client,
    FakeClock,
    FakeLoader,
    FakeModel,
    FakePrepared,
    sizes,
    spin,
)

BROKEN = ModelBrokenError("it is cut short")


def _fail(quarantine: Quarantine, times: int, error: ServeAppError = BROKEN) -> None:
    for _ in range(times):
        quarantine.failed(A, error)


def _refused_s(quarantine: Quarantine, key: ModelKey = A) -> float | None:
    """Return for how long a model is refused; None if it may be tried."""
    try:
        quarantine.check(key)
    except ServeAppError as error:
        return error.retry_after_s
    return None


def test_the_third_failure_in_a_row_sets_a_model_aside() -> None:
    """With the error that it had, and when it is tried again; others may be tried."""
    quarantine = Quarantine(FakeClock())
    _fail(quarantine, 2)
    assert _refused_s(quarantine) is None
    _fail(quarantine, 1)
    with pytest.raises(ModelBrokenError, match=r"cut short \(set aside after 3 .* again in 5 s"):
        quarantine.check(A)
    assert _refused_s(quarantine) == 5.0
    assert _refused_s(quarantine, B) is None
    assert quarantine.snapshot() == (SetAside("a@1", "model_broken", 3, 5.0),)


def test_each_further_failure_doubles_the_pause() -> None:
    """Up to five minutes for a broken file; a source that is away is asked every five seconds."""
    for error, longest_s in ((BROKEN, 300.0), (SourceUnavailableError("away"), 5.0)):
        assert LONGEST_PAUSE_S[type(error)] == longest_s
        clock = FakeClock()
        quarantine = Quarantine(clock)
        _fail(quarantine, 2, error)
        pauses = []
        for _ in range(100):
            _fail(quarantine, 1, error)
            pauses.append(_refused_s(quarantine))
            clock.advance(pauses[-1] or 0.0)
            assert _refused_s(quarantine) is None, "one load is let through"
        assert pauses[:3] == [min(pause_s, longest_s) for pause_s in (5.0, 10.0, 20.0)]
        assert set(pauses[6:]) == {longest_s}


def test_a_success_clears_it() -> None:
    """Afterwards three failures are needed again."""
    clock = FakeClock()
    quarantine = Quarantine(clock)
    _fail(quarantine, 3)
    clock.advance(5.0)
    quarantine.loaded(A)
    _fail(quarantine, 2)
    assert _refused_s(quarantine) is None
    _fail(quarantine, 1)
    assert _refused_s(quarantine) == 5.0


@pytest.mark.parametrize("error", [OverloadedError("no memory"), DeadlineExceededError("slow")])
def test_what_is_not_the_models_fault_does_not_count(error: ServeAppError) -> None:
    """Nor does it end a row of failures."""
    quarantine = Quarantine(FakeClock())
    _fail(quarantine, 10, error)
    assert _refused_s(quarantine) is None
    _fail(quarantine, 2)
    _fail(quarantine, 1, error)
    _fail(quarantine, 1)
    assert _refused_s(quarantine) == 5.0


def test_an_operator_may_try_at_once() -> None:
    """That load fails: the pause is the longer one."""
    quarantine = Quarantine(FakeClock())
    quarantine.try_now(A)
    _fail(quarantine, 3)
    quarantine.try_now(A)
    assert _refused_s(quarantine) is None
    assert quarantine.snapshot() == ()
    _fail(quarantine, 1)
    assert _refused_s(quarantine) == 10.0


def test_a_file_that_was_replaced_is_tried_at_once() -> None:
    """And its predecessor's failures are not its own."""
    files = {A: "100 bytes"}
    quarantine = Quarantine(FakeClock(), file_of=files.get)
    _fail(quarantine, 3)
    assert _refused_s(quarantine) == 5.0
    files[A] = "200 bytes"
    assert _refused_s(quarantine) is None
    _fail(quarantine, 2)
    files[A] = "300 bytes"
    _fail(quarantine, 2)
    assert _refused_s(quarantine) is None


def test_a_refusal_has_the_file_looked_at() -> None:
    """Once a second at most, and only while the model is set aside; so a new file is noticed."""
    clock, files = FakeClock(), {A: "100 bytes"}
    looks: list[ModelKey] = []
    quarantine = Quarantine(clock, file_of=files.get, look=looks.append)
    _fail(quarantine, 2)
    assert _refused_s(quarantine) is None
    assert looks == []
    _fail(quarantine, 1)
    for _ in range(5):
        assert _refused_s(quarantine) == 5.0
    assert looks == [A]
    clock.advance(1.0)
    assert _refused_s(quarantine) == 4.0
    assert looks == [A, A]
    files[A] = "200 bytes"
    assert _refused_s(quarantine) is None
    assert looks == [A, A]


def test_what_it_keeps_is_bounded() -> None:
    """The oldest go first."""
    quarantine = Quarantine(FakeClock())
    keys = [ModelKey(f"m{number}", "1") for number in range(5000)]
    for key in keys:
        for _ in range(3):
            quarantine.failed(key, BROKEN)
    assert len(quarantine.snapshot()) == 4096
    assert _refused_s(quarantine, keys[0]) is None
    assert _refused_s(quarantine, keys[-1]) is not None


# --- in the cache -------------------------------------------------------------------------------

Fixture = tuple[ModelCache[FakePrepared, FakeModel], FakeLoader]


@pytest.fixture
def parts(clock: FakeClock) -> Fixture:
    """Return a cache with room for all, and its loader, whose preparing is done by hand."""
    loader = FakeLoader(dict.fromkeys((A, B), sizes(1)), "prepare")
    return ModelCache(loader, limits=CacheLimits(100), clock=clock), loader


async def _ask(parts: Fixture, end: Callable[[], None] | None) -> Client:
    """Return a request for A whose load, if one begins, is ended by `end`."""
    client = Client(parts[0], A)
    await spin()
    if end is not None:
        end()
        await spin()
    return client


async def test_requests_for_a_model_set_aside_touch_no_file(
    parts: Fixture, clock: FakeClock
) -> None:
    """They are refused at once with the same code, and one is let through after the pause."""
    cache, loader = parts
    for _ in range(3):
        client = await _ask(parts, lambda: loader.finish("prepare", A, ValueError("odd bytes")))
        assert isinstance(client.error, ModelBrokenError)
    client = await _ask(parts, None)
    assert isinstance(client.error, ModelBrokenError)
    assert client.error.retry_after_s == 5.0
    assert loader.calls == ["prepare a"] * 3
    assert [model.key for model in cache.set_aside()] == ["a@1"]
    clock.advance(5.0)
    client = await _ask(parts, lambda: loader.finish("prepare", A))
    assert client.holds
    assert cache.set_aside() == ()
    client.leave()
    await spin()
    assert await cache.unload(A, timeout_s=1.0)
    client = await _ask(parts, lambda: loader.finish("prepare", A, ValueError("odd bytes")))
    assert isinstance(client.error, ModelBrokenError)
    assert cache.set_aside() == (), "its success has cleared it"


async def test_waiters_of_one_load_count_once(parts: Fixture) -> None:
    """However many requests it fails."""
    cache, loader = parts
    clients = [Client(cache, A) for _ in range(10)]
    await spin()
    loader.finish("prepare", A, ModelBrokenError("cut short"))
    await spin()
    assert all(isinstance(client.error, ModelBrokenError) for client in clients)
    assert cache.set_aside() == ()


async def test_a_request_that_is_refused_has_the_file_looked_at(clock: FakeClock) -> None:
    """The next one has what was found."""
    loader = FakeLoader({A: sizes(1)})
    files = {A: "100 bytes"}

    def look(key: ModelKey) -> None:
        files[key] = "200 bytes"

    cache: ModelCache[FakePrepared, FakeModel] = ModelCache(
        loader, limits=CacheLimits(100), clock=clock, file_of=files.get, look=look
    )
    loader.by_hand.add("prepare")
    for _ in range(3):
        await _ask((cache, loader), lambda: loader.finish("prepare", A, ModelBrokenError("odd")))
    loader.by_hand.clear()
    assert isinstance((await _ask((cache, loader), None)).error, ModelBrokenError)
    assert (await _ask((cache, loader), None)).holds


async def test_an_operators_load_is_tried_at_once(parts: Fixture) -> None:
    """A preload that goes by itself is not."""
    cache, loader = parts
    for _ in range(3):
        await _ask(parts, lambda: loader.finish("prepare", A, SourceUnavailableError("away")))
    with pytest.raises(SourceUnavailableError, match="set aside"):
        await cache.load(A, timeout_s=1.0)
    loader.by_hand.clear()
    assert await cache.load(A, timeout_s=60.0, at_once=True)
    assert cache.set_aside() == ()
