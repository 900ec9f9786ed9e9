"""A loader whose steps are finished by hand, an observer that remembers, a clock that is set."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from serve_app.cache import EvictionReason, Lease, ModelCache, Outcome
from serve_app.errors import ServeAppError
from serve_app.types import Footprint, ModelKey

A, B, C, D, E = (ModelKey(name, "1") for name in "abcde")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model says it will take and what it takes."""

    estimate: Footprint
    measured: Footprint


def sizes(
    own: int, graph: Mapping[str, int] | None = None, *, measured: int | None = None
) -> Sizes:
    """Return sizes whose estimate is right unless `measured` says otherwise."""
    shared = graph or {}
    return Sizes(Footprint(own, shared), Footprint(own if measured is None else measured, shared))


@dataclass(slots=True, eq=False)
class FakePrepared:
    """A file that knows its model's size."""

    key: ModelKey
    estimate: Footprint


@dataclass(slots=True, eq=False)
class FakeModel:
    """A model that knows how often it is in use and how often it was closed."""

    key: ModelKey
    footprint: Footprint
    phases_s: Mapping[str, float] = field(default_factory=lambda: {"read": 0.5})
    users: int = 0
    closings: int = 0
    closed: bool = False


@dataclass(slots=True, eq=False)
class Step:
    """One call of the loader that waits to be finished."""

    kind: str
    key: ModelKey
    done: asyncio.Future[None]


class FakeLoader:
    """Holds the steps named in `by_hand` until `finish`; the others take one turn of the loop."""

    def __init__(self, models: Mapping[ModelKey, Sizes], *by_hand: str) -> None:
        self.models = dict(models)
        self.by_hand = set(by_hand)
        self.pending: list[Step] = []
        self.calls: list[str] = []
        self.opened: list[FakeModel] = []
        self.ready: set[ModelKey] = set()  # prepared and not yet open
        self.wrongs: list[str] = []

    async def prepare(self, key: ModelKey) -> FakePrepared:
        """Return the estimate of `key`."""
        await self._step("prepare", key)
        self.ready.add(key)
        return FakePrepared(key, self.models[key].estimate)

    async def open(self, prepared: FakePrepared) -> FakeModel:
        """Return a new model of the measured size."""
        await self._step("open", prepared.key)
        model = FakeModel(prepared.key, self.models[prepared.key].measured)
        self.opened.append(model)
        asyncio.get_running_loop().call_soon(self.ready.discard, prepared.key)
        return model

    async def close(self, model: FakeModel) -> None:
        """Count the closing; one of a model in use, or a second one, is a wrong."""
        model.closings += 1
        if model.users or model.closings > 1:
            self.wrongs.append(f"{model.key} closed {model.closings}x under {model.users} users")
        try:
            await self._step("close", model.key)
        finally:
            model.closed = True

    def finish(self, kind: str, key: ModelKey, error: Exception | None = None) -> None:
        """Let the pending step `kind` of `key` return, or raise `error`."""
        found = next(step for step in self.pending if (step.kind, step.key) == (kind, key))
        self.finish_step(found, error)

    def finish_step(self, step: Step, error: Exception | None = None) -> None:
        """Let `step` return, or raise `error`."""
        self.pending.remove(step)
        if step.done.done():
            return
        if error is None:
            step.done.set_result(None)
        else:
            step.done.set_exception(error)

    def loads(self, key: ModelKey) -> int:
        """Return how often `key` was begun to be opened."""
        return self.calls.count(f"open {key.name}")

    def real_bytes(self) -> int:
        """Return what the models that are open take together."""
        return used_bytes(model for model in self.opened if not model.closed)

    async def _step(self, kind: str, key: ModelKey) -> None:
        self.calls.append(f"{kind} {key.name}")
        step = Step(kind, key, asyncio.get_running_loop().create_future())
        self.pending.append(step)
        try:
            if kind in self.by_hand:
                await step.done
            else:
                await asyncio.sleep(0)
        finally:
            if step in self.pending:
                self.pending.remove(step)


def used_bytes(models: Iterable[FakeModel]) -> int:
    """Return the bytes that `models` take together, each graph once."""
    own, graphs = 0, dict[str, int]()
    for model in models:
        own += model.footprint.own_bytes
        graphs.update(model.footprint.shared)
    return own + sum(graphs.values())


class Recorder:
    """An observer that remembers everything."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[ModelKey, Outcome]] = []
        self.loads: list[tuple[ModelKey, float, Mapping[str, float]]] = []
        self.failures: list[tuple[ModelKey, Exception]] = []
        self.evictions: list[tuple[ModelKey, EvictionReason]] = []
        self.keys: frozenset[ModelKey] = frozenset()
        self.changes = 0

    def requested(self, key: ModelKey, outcome: Outcome) -> None:
        """Remember the outcome."""
        self.outcomes.append((key, outcome))

    def loaded(self, key: ModelKey, seconds: float, phases_s: Mapping[str, float]) -> None:
        """Remember the load."""
        self.loads.append((key, seconds, phases_s))

    def load_failed(self, key: ModelKey, error: Exception) -> None:
        """Remember the failure."""
        self.failures.append((key, error))

    def evicted(self, key: ModelKey, reason: EvictionReason) -> None:
        """Remember the eviction."""
        self.evictions.append((key, reason))

    def changed(self, keys: Collection[ModelKey]) -> None:
        """Remember the last set and how often it was told."""
        self.keys = frozenset(keys)
        self.changes += 1


class FakeClock:
    """Stands still until it is told to advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now += seconds


async def spin(turns: int = 30) -> None:
    """Let everything that can run, run."""
    for _ in range(turns):
        await asyncio.sleep(0)


class Client:
    """One request: leases a model, keeps it until `leave`, and remembers what came of it."""

    def __init__(
        self, cache: ModelCache[FakePrepared, FakeModel], key: ModelKey, timeout_s: float = 60.0
    ) -> None:
        self.lease: Lease[FakeModel] | None = None
        self.error: ServeAppError | None = None
        self._leaving = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._run(cache, key, timeout_s))

    @property
    def holds(self) -> bool:
        """Whether it has its lease now."""
        return self.lease is not None and not self.task.done()

    def leave(self) -> None:
        """Let the block under the lease end."""
        self._leaving.set()

    async def _run(
        self, cache: ModelCache[FakePrepared, FakeModel], key: ModelKey, timeout_s: float
    ) -> None:
        try:
            async with cache.lease(key, timeout_s=timeout_s) as lease:
                self.lease = lease
                lease.model.users += 1
                try:
                    await self._leaving.wait()
                finally:
                    lease.model.users -= 1
        except ServeAppError as error:
            self.error = error
