"""The cache under any order of events: hypothesis drives a hand-turned event loop.

The machine decides when a step of the loader ends and how, who asks, who leaves, who is cancelled,
and how many turns the event loop makes in between. After each rule everything that must always be
true is checked; whenever the machine lets everything come to rest, so is all the rest.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve_app.cache import GDSF, LRU, CacheLimits, EvictionReason, ModelCache, Policy
from serve_app.cache.entry import Entry, Phase
from serve_app.errors import (
    DeadlineExceededError,
    InvalidParameterError,
    ModelBrokenError,
    ModelExceedsBudgetError,
    OverloadedError,
)
from serve_app.types import Footprint, ModelKey
from tests.unit.cache.fakes import (
    Client,
    FakeClock,
    FakeLoader,
    FakeModel,
    FakePrepared,
    Recorder,
    Sizes,
    used_bytes,
)

KEYS = [ModelKey(name, "1") for name in "abcdef"]
GRAPHS = {"g": 20, "h": 10}
QUIET = 25  # turns of the loop after which only the machine can go on
LOADS = 2
PREPARES = 2
EXPECTED = (OverloadedError, DeadlineExceededError, ModelBrokenError, ModelExceedsBudgetError)

keys = st.sampled_from(KEYS)
turns = st.sampled_from([0, 1, 2, QUIET, QUIET])
picks = st.integers(0, 99)
policies = st.sampled_from([LRU, GDSF])
limits = st.builds(
    CacheLimits,
    st.integers(0, 120),
    st.sampled_from([None, None, 1, 2, 4]),
    st.frozensets(keys, max_size=2),
)


@st.composite
def model_sizes(draw: st.DrawFn) -> Sizes:
    """Draw a model whose estimate may be wrong in either direction, for its graph too."""
    graph = draw(st.sampled_from([None, "g", "g", "h"]))
    own = draw(st.integers(0, 50))
    error = draw(st.sampled_from([0, 0, 0, -5, 5, 40]))
    shared = {graph: GRAPHS[graph]} if graph else {}
    guess = {part: size + draw(st.sampled_from([0, 0, -5, 5])) for part, size in shared.items()}
    return Sizes(Footprint(max(0, own - error), guess), Footprint(own, shared))


class Watcher(Recorder):
    """Also checks each event against what may happen."""

    def __init__(self, machine: "CacheMachine") -> None:
        super().__init__()
        self._machine = machine

    def evicted(self, key: ModelKey, reason: EvictionReason) -> None:
        """Check that the model was not pinned."""
        super().evicted(key, reason)
        if reason != "shutdown" and key in self._machine.limits.pinned:
            self._machine.wrongs.append(f"{key} was evicted although it was pinned")

    def changed(self, keys: Collection[ModelKey]) -> None:
        """Check that models leave only for a load whose file is prepared."""
        left = {model.key for model in self._machine.open_models()} & (self.keys - frozenset(keys))
        super().changed(keys)
        self._machine.check_reason_to_leave(left)
        self._machine.loader.ready &= self.keys


class CacheMachine(RuleBasedStateMachine):
    """Random histories of one cache."""

    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.CRITICAL)  # failing closes and broken loaders are part of this
        self.clock = FakeClock()
        self.loop = asyncio.new_event_loop()
        self.loop.time = self.clock  # type: ignore[method-assign]
        self.loop.set_exception_handler(lambda _, context: self.wrongs.append(str(context)))
        self.clients: list[Client] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.wrongs: list[str] = []
        self.limits = CacheLimits(100)
        self.watcher = Watcher(self)
        self.reconfiguring = False
        self.unloading: dict[ModelKey, int] = {}
        self.over_since_shrink = False  # whether a smaller budget has not been reached yet
        self.ending = False

    @initialize(
        models=st.fixed_dictionaries(dict.fromkeys(KEYS, model_sizes())),
        first=limits,
        policy=policies,
    )
    def start(
        self, models: dict[ModelKey, Sizes], first: CacheLimits, policy: type[Policy]
    ) -> None:
        """Make the cache."""
        self.loader = FakeLoader(models, "prepare", "open", "close")
        self.limits = first
        self.cache: ModelCache[FakePrepared, FakeModel] = ModelCache(
            self.loader,
            limits=first,
            policy=policy(),
            observer=self.watcher,
            clock=self.clock,
            max_concurrent_loads=LOADS,
            max_concurrent_prepares=PREPARES,
        )

    # --- what can happen ------------------------------------------------------------------------

    @rule(key=keys, timeout_s=st.sampled_from([0.0, 1.5, 60.0]), n=turns)
    def request(self, key: ModelKey, timeout_s: float, n: int) -> None:
        """Someone asks for a model."""
        self.within(lambda: self.clients.append(Client(self.cache, key, timeout_s)), n)

    @rule(pick=picks, n=turns)
    def leave(self, pick: int, n: int) -> None:
        """A request that has its model is done with it."""
        if holders := [client for client in self.clients if client.holds]:
            self.within(holders[pick % len(holders)].leave, n)

    @rule(pick=picks, n=turns)
    def cancel(self, pick: int, n: int) -> None:
        """A client disconnects, or an unload is cancelled."""
        tasks = [*(client.task for client in self.clients), *self.tasks]
        if tasks := [task for task in tasks if not task.done()]:
            self.within(tasks[pick % len(tasks)].cancel, n)

    @rule(pick=picks, fails=st.sampled_from([False, False, False, True]), n=turns)
    def finish(self, pick: int, fails: bool, n: int) -> None:
        """A step of the loader ends, well or not."""
        if steps := self.loader.pending:
            step = steps[pick % len(steps)]
            error = ModelBrokenError("bad") if pick % 2 else RuntimeError("bad")
            self.within(lambda: self.loader.finish_step(step, error if fails else None), n)

    @rule(n=turns)
    def finish_all(self, n: int) -> None:
        """Everything that the loader does now ends well."""
        for step in list(self.loader.pending):
            self.within(lambda step=step: self.loader.finish_step(step), 0)  # type: ignore[misc]
        self.turn(n)

    @rule(key=keys, timeout_s=st.sampled_from([0.0, 1.5, 60.0]), n=turns)
    def unload(self, key: ModelKey, timeout_s: float, n: int) -> None:
        """An operator unloads a model."""
        self.spawn(self.do_unload(key, timeout_s), n)

    @rule(key=keys, n=turns)
    def load(self, key: ModelKey, n: int) -> None:
        """An operator preloads a model."""
        self.spawn(self.do_load(key), n)

    @rule(new=limits, policy=st.none() | policies, n=turns)
    def reconfigure(self, new: CacheLimits, policy: type[Policy] | None, n: int) -> None:
        """The operator changes the budget, the cap, the pins and the policy."""
        self.within(lambda: self.do_reconfigure(new, policy), n)

    @rule(policy=policies, n=turns)
    def change_policy(self, policy: type[Policy], n: int) -> None:
        """The operator changes the policy only: nobody may leave for that."""
        self.within(lambda: self.do_change_policy(policy), n)

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.0]), n=turns)
    def advance(self, seconds: float, n: int) -> None:
        """Time passes: deadlines and patience end."""
        self.clock.advance(seconds)
        self.turn(n)

    @precondition(lambda self: any(not client.task.done() for client in self.clients))
    @rule()
    def rest(self) -> None:
        """All steps end well and all who hold a model leave: nobody may be left waiting."""
        for _ in range(100):
            self.turn(QUIET)
            busy = [client for client in self.clients if client.holds]
            if not busy and not self.loader.pending:
                break
            for client in busy:
                client.leave()
            for step in list(self.loader.pending):
                self.loader.finish_step(step)
        assert all(client.task.done() for client in self.clients), "a request was not answered"
        assert all(task.done() for task in self.tasks), "an operator was not answered"
        self.check_at_rest()

    # --- what must be true ----------------------------------------------------------------------

    @invariant()
    def nothing_is_wrong(self) -> None:
        """No model in use was closed, none twice, no pin broken, nobody got an odd error."""
        assert self.wrongs == [], self.wrongs
        assert self.loader.wrongs == [], self.loader.wrongs
        leased = [client.lease for client in self.clients if client.lease and client.holds]
        assert not any(lease.model.closings for lease in leased), "leased while being closed"

    @invariant()
    def errors_are_expected(self) -> None:
        """A request or an operator gets a model, a known error, or is cancelled."""
        for task in [*(client.task for client in self.clients), *self.tasks]:
            if task.done() and not task.cancelled():
                assert task.exception() is None
        errors = [client.error for client in self.clients if client.error is not None]
        assert all(isinstance(error, EXPECTED) for error in errors)

    @invariant()
    def observer_knows_the_keys(self) -> None:
        """What was told last is what is."""
        assert self.cache.keys() == self.watcher.keys

    @invariant()
    def memory_is_in_the_ledger(self) -> None:
        """Whatever is open counts, until its close has ended."""
        assert used_bytes(self.open_models()) <= self.cache.used_bytes

    @invariant()
    def limits_hold(self) -> None:
        """They are exceeded after a decrease and by what was larger than estimated, only."""
        states = [model.state for model in self.cache.snapshot()]
        held = self.cache._state.held
        if any(entry.phase is Phase.ADMITTED for entry in self.entries()):
            assert self.limits.allow(self.cache._state.planned), "promised what is not there"
        if self.limits.allow(held):
            self.over_since_shrink = False
            return
        staying = [m for m in self.cache.snapshot() if m.state == "resident"]
        if not self.limits.allow(self.cache._state.planned):
            assert self.over_since_shrink, "more was promised than there is"
            idle = [m for m in staying if not m.leases and not m.pinned]
            assert not idle, "over the limits although a model could go"
        elif not self.over_since_shrink:
            assert "evicting" in states
            count = self.limits.max_models
            assert count is None or len(held) <= count
            assert held.used_bytes - self.limits.budget_bytes <= self.underestimated()

    @invariant()
    def nobody_goes_or_comes_in_vain(self) -> None:
        """A model in use leaves for lack of room, and a load that waits is wanted."""
        state = self.cache._state
        for entry in self.entries():
            if entry.phase is Phase.LEAVING and not (entry.unloads or entry.error or self.ending):
                assert not self.limits.allow_beside(state.planned, entry.need)
            if entry.phase in (Phase.QUEUED, Phase.WAITING, Phase.ADMITTED):
                assert entry.holds

    @invariant()
    def loads_are_single_and_few(self) -> None:
        """One load per model, and no more than allowed at once."""
        loading = [step.key for step in self.loader.pending if step.kind != "close"]
        assert len(loading) == len(set(loading))
        for kind, most in (("prepare", PREPARES), ("open", LOADS)):
            assert sum(step.kind == kind for step in self.loader.pending) <= most
        both = {step.key for step in self.loader.pending if step.kind == "close"} & set(loading)
        assert not both, "loaded while its former self was being closed"

    def teardown(self) -> None:
        """Close the cache in whatever state it is; nothing may remain."""
        if hasattr(self, "cache"):
            self.ending = True
            closing = self.spawn(self.cache.aclose(), QUIET)
            for _ in range(20):
                for client in self.clients:
                    client.leave()
                for step in list(self.loader.pending):
                    self.loader.finish_step(step)
                self.turn(QUIET)
            assert closing.done()
            assert all(client.task.done() for client in self.clients)
            assert all(model.closings == 1 for model in self.loader.opened)
            assert repr(self.cache).startswith("ModelCache(0 resident, 0 loading, 0 leases, 0/")
            assert not asyncio.all_tasks(self.loop)
            self.nothing_is_wrong()
            self.observer_knows_the_keys()
        self.loop.close()
        logging.disable(logging.NOTSET)

    # --- parts of the above ---------------------------------------------------------------------

    def check_at_rest(self) -> None:
        """Check that what is open is resident, and that the ledger is its sum."""
        models = self.open_models()
        assert {model.key for model in models} == self.cache.keys()
        assert all(model.closings == (1 if model.closed else 0) for model in self.loader.opened)
        assert self.cache.used_bytes == used_bytes(models)
        assert all(m.state == "resident" and not m.leases for m in self.cache.snapshot())
        if not all(model.key in self.limits.pinned for model in models):
            assert self.limits.allow(self.cache._state.held)

    def check_reason_to_leave(self, left: set[ModelKey]) -> None:
        """Only a prepared load, an unload or new limits make a resident model leave."""
        left -= self.unloading.keys()
        if left and not (self.reconfiguring or self.ending or self.loader.ready):
            self.wrongs.append(f"{left} left for nobody")

    def entries(self) -> Collection[Entry[FakeModel]]:
        """Return what the cache knows of its models."""
        return self.cache._state.entries.values()

    def open_models(self) -> list[FakeModel]:
        """Return the models that take memory."""
        if not hasattr(self, "loader"):
            return []
        return [model for model in self.loader.opened if not model.closed]

    def underestimated(self) -> int:
        """Return by how much all open models together may have exceeded their estimates."""
        return sum(
            max(0, model.footprint.own_bytes - self.loader.models[model.key].estimate.own_bytes)
            + 5 * len(model.footprint.shared)
            for model in self.open_models()
        )

    def do_reconfigure(self, new: CacheLimits, policy: type[Policy] | None) -> None:
        """Set new limits; from now on they may be exceeded until they are reached."""
        self.limits, self.reconfiguring, self.over_since_shrink = new, True, True
        self.cache.reconfigure(new, policy() if policy is not None else None)
        self.reconfiguring = False

    def do_change_policy(self, policy: type[Policy]) -> None:
        """Set a policy under the limits in force."""
        self.cache.reconfigure(self.limits, policy())

    async def do_unload(self, key: ModelKey, timeout_s: float) -> None:
        """Unload, and check what may come of it."""
        self.unloading[key] = self.unloading.get(key, 0) + 1
        try:
            with contextlib.suppress(OverloadedError, InvalidParameterError):
                await self.cache.unload(key, timeout_s=timeout_s)
        finally:
            self.unloading[key] -= 1
            if not self.unloading[key]:
                del self.unloading[key]

    async def do_load(self, key: ModelKey) -> None:
        """Preload; it may end in what a request may end in."""
        with contextlib.suppress(*EXPECTED):
            await self.cache.load(key, timeout_s=60)

    def spawn(self, work: Coroutine[Any, Any, None], n: int) -> asyncio.Task[None]:
        """Start a task and turn the loop."""
        task = self.loop.create_task(work)
        self.tasks.append(task)
        self.turn(n)
        return task

    def within(self, action: Callable[[], object], n: int) -> None:
        """Do something inside the running loop, then turn it."""
        self.loop.call_soon(action)
        self.turn(n + 1)

    def turn(self, n: int) -> None:
        """Turn the loop `n` times."""
        for _ in range(n):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()


CacheMachine.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=50,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCacheProperties = CacheMachine.TestCase
