"""Policies: exact orders, what ages, what a slot costs, and a change in place."""

import pytest

from serve_app.cache import GDSF, LRU, CacheLimits, ModelCache, Policy, Usage
from serve_app.types import ModelKey
from tests.unit.cache.fakes import (
    A,
    B,
    C,
    Client,
    D,
    E,
    FakeClock,
    FakeLoader,
    FakeModel,
    FakePrepared,
    Recorder,
    sizes,
    spin,
)

Cache = ModelCache[FakePrepared, FakeModel]

ONCE = [ModelKey(f"once-{i}", "1") for i in range(40)]
"""Models that nobody asks for twice."""


def usage(key: ModelKey, *, size: int = 1, reload_s: float = 1.0, last_used: float = 0.0) -> Usage:
    """Return what a policy sees of a model that was leased once."""
    return Usage(key, size, reload_s, last_used, 1)


def order(policy: Policy, *usages: Usage) -> list[ModelKey]:
    """Return the keys, the first to go first."""
    return [usage.key for usage in policy.order(usages)]


def use(policy: Policy, *keys: ModelKey) -> None:
    """Tell `policy` of one lease of each."""
    for key in keys:
        policy.used(key)


def test_lru_ranks_the_longest_unused_first() -> None:
    """LRU orders by last use and by nothing else."""
    usages = (Usage(A, 1, 9.0, 3.0, 1), Usage(B, 9, 1.0, 1.0, 99), Usage(C, 5, 5.0, 2.0, 5))
    policy = LRU()
    use(policy, B, B, B)
    policy.evicted(usages[2])
    assert order(policy, *usages) == [B, C, A]


def test_gdsf_ranks_by_frequency_times_cost_over_bytes() -> None:
    """Each of the three factors alone turns the order, and together they multiply."""
    policy = GDSF(half_life=1e9)
    use(policy, A, B, B, B, C, D)
    usages = (
        usage(A, size=10, reload_s=10.0, last_used=9.0),  # 1 x 10 / 10 = 1
        usage(B, size=6, reload_s=4.0, last_used=1.0),  # 3 x 4 / 6 = 2
        usage(C, size=2, reload_s=3.0, last_used=2.0),  # 1 x 3 / 2 = 1.5
        usage(D, size=20, reload_s=10.0, last_used=3.0),  # 1 x 10 / 20 = 0.5
    )
    assert order(policy, *usages) == [D, A, C, B]


def test_gdsf_breaks_ties_by_recency() -> None:
    """Models worth the same go as LRU would send them."""
    policy = GDSF(half_life=1e9)
    use(policy, A, B, C)
    usages = (usage(A, last_used=3.0), usage(B, last_used=1.0), usage(C, last_used=2.0))
    assert order(policy, *usages) == [B, C, A]


def test_ordering_changes_nothing() -> None:
    """A decision that is not taken, or is asked for twice, leaves no trace."""
    policy = GDSF(half_life=1e9)
    use(policy, A, B, B)
    first = order(policy, usage(A), usage(B), usage(C))
    assert [order(policy, usage(A), usage(B), usage(C)) for _ in range(3)] == [first] * 3


def test_eviction_lifts_what_is_used_later() -> None:
    """What is leased after an eviction starts above the priority of what went."""
    policy = GDSF(half_life=1e9)
    use(policy, A, A, B, B, B)  # 2 and 3
    policy.evicted(usage(A))  # the clock is 2
    use(policy, C)  # 2 + 1, no less than the older B with 3
    assert order(policy, usage(C, last_used=9.0), usage(B)) == [B, C]
    use(policy, C)  # 2 + 2
    assert order(policy, usage(C), usage(B, last_used=9.0)) == [B, C]


def test_the_clock_never_runs_backwards() -> None:
    """A cheap victim after a dear one does not devalue what comes next."""
    policy = GDSF(half_life=1e9)
    use(policy, A, A, A, A, B)
    policy.evicted(usage(A))  # the clock is 4
    policy.evicted(usage(B))  # priority 1
    use(policy, C, D, D)
    assert order(policy, usage(D), usage(C), Usage(E, 1, 4.5, 9.0, 1)) == [E, C, D]


@pytest.mark.parametrize("uses", [10, 100])
def test_a_model_that_was_hot_once_is_overtaken(uses: int) -> None:
    """No past keeps a model for ever: newcomers, each used once, push it out in the end."""
    policy = GDSF(half_life=1e9)
    use(policy, *[A] * uses)
    gone_after = 0
    while True:
        newcomers = [ModelKey(f"n{gone_after}-{i}", "1") for i in range(2)]
        use(policy, *newcomers)
        resident = [usage(A), *(usage(key, last_used=1.0) for key in newcomers)]
        victim = policy.order(resident)[0]
        policy.evicted(victim)
        if victim.key == A:
            break
        gone_after += 1
    assert gone_after == uses - 1


def test_frequency_survives_eviction_and_fades() -> None:
    """A model that comes back is known, less and less the longer it was away."""
    policy = GDSF(half_life=10.0)
    use(policy, A, A, A)  # 1 + 0.5 ** 0.1 + 0.5 ** 0.2
    use(policy, *[ModelKey("other", "1")] * 9, A)  # fades to half, and one more: about 2.4
    rival = ModelKey("rival", "1")
    use(policy, rival, rival)  # just under 2
    assert order(policy, usage(A), usage(rival, last_used=9.0)) == [rival, A]
    assert order(policy, usage(A), usage(rival, reload_s=1.5)) == [A, rival]


def test_the_longest_unused_history_is_forgotten() -> None:
    """Memory is bounded; a model that was forgotten counts as the cache says."""
    policy = GDSF(half_life=1e9, remembered=2)
    use(policy, A, A, A, A, B, A, B, C)  # A goes from memory, used before B
    assert order(policy, usage(A), usage(B), usage(C, last_used=5.0)) == [A, C, B]


def test_a_model_without_bytes_is_no_error() -> None:
    """Bytes that are all shared leave nothing to divide by."""
    policy = GDSF()
    use(policy, A, B)
    assert order(policy, usage(A, size=0), usage(B, size=10)) == [B, A]


def test_a_slot_is_charged_where_it_is_dearer_than_the_bytes() -> None:
    """Under a cap on the number of models, a small one is charged for the slot that it takes."""
    assert CacheLimits(100).charge(7) == 7
    assert CacheLimits(100, max_models=4).charge(7) == 25
    assert CacheLimits(100, max_models=4).charge(60) == 60


@pytest.fixture
def observer() -> Recorder:
    """Return what the cache under test tells."""
    return Recorder()


class TimedLoader(FakeLoader):
    """Loads A in 9 s and every other model in one."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__({**dict.fromkeys((A, B, C, D, *ONCE), sizes(4)), E: sizes(40)})
        self._clock = clock

    async def open(self, prepared: FakePrepared) -> FakeModel:
        """Let the time of the load pass."""
        self._clock.advance(9 if prepared.key == A else 1)
        return await super().open(prepared)


def make(limits: CacheLimits, policy: Policy | None, observer: Recorder, clock: FakeClock) -> Cache:
    """Return a cache of models of 4 bytes, and a large one, E, of 40."""
    loader = TimedLoader(clock)
    return ModelCache(loader, limits=limits, policy=policy, observer=observer, clock=clock)


async def load(cache: Cache, *keys: ModelKey) -> None:
    """Lease each of `keys` in turn."""
    for key in keys:
        await cache.load(key, timeout_s=60)


@pytest.mark.parametrize("limits", [CacheLimits(8), CacheLimits(10**6, max_models=2)])
async def test_gdsf_keeps_what_was_slow_to_load(
    limits: CacheLimits, observer: Recorder, clock: FakeClock
) -> None:
    """The measured seconds of each load reach the policy, under either bound."""
    cache = make(limits, GDSF(half_life=1e9), observer, clock)
    await load(cache, A, B, C, D)
    assert [key for key, _ in observer.evictions] == [B, C]
    assert cache.keys() == {A, D}


async def test_size_does_not_count_where_the_count_binds(
    observer: Recorder, clock: FakeClock
) -> None:
    """With bytes to spare, a large model and a small one take a slot each; recency decides."""
    cache = make(CacheLimits(10**6, max_models=2), GDSF(half_life=1e9), observer, clock)
    await load(cache, B, E, C)
    assert cache.keys() == {E, C}


async def test_gdsf_lets_go_of_what_was_slow_to_load_in_the_end(
    observer: Recorder, clock: FakeClock
) -> None:
    """The cache tells the policy of what it evicts, so the clock goes on."""
    cache = make(CacheLimits(8), GDSF(half_life=1e9), observer, clock)
    await load(cache, A, *ONCE)
    gone = [key for key, _ in observer.evictions]
    assert A in gone
    assert gone.index(A) > 2, "the slow model was no better off than the others"


async def test_unloading_by_hand_does_not_age_the_others(
    observer: Recorder, clock: FakeClock
) -> None:
    """An operator's unload says nothing of what a place in memory is worth."""
    cache = make(CacheLimits(8), GDSF(half_life=1e9), observer, clock)
    await load(cache, B, B, *[A] * 20)  # worth 2 and 180, over 4 bytes
    await cache.unload(A, timeout_s=60)
    await load(cache, C)  # worth 1: the clock still stands at nought
    await load(cache, D)
    assert cache.keys() == {B, D}


class _Told(LRU):
    """Remembers which evictions it is told of."""

    def __init__(self) -> None:
        self.gone: list[ModelKey] = []

    def evicted(self, usage: Usage) -> None:
        self.gone.append(usage.key)


@pytest.mark.parametrize("stays", [True, False])
async def test_the_policy_is_told_when_a_model_really_goes(
    stays: bool, observer: Recorder, clock: FakeClock
) -> None:
    """One in use that was to go may stay after all; its worth would be held against the others."""
    policy = _Told()
    cache = make(CacheLimits(4), policy, observer, clock)
    busy, hasty = Client(cache, A), Client(cache, C, timeout_s=50)
    await spin()
    clock.advance(2)  # beyond the patience with models in use
    late = Client(cache, A)
    await spin()
    assert [model.state for model in cache.snapshot()] == ["evicting", "loading"]
    assert policy.gone == []
    if stays:
        clock.advance(50)
        await spin()
        assert hasty.error is not None
    busy.leave()
    await spin()
    assert policy.gone == ([] if stays else [A])
    assert (hasty.holds, late.holds) == (not stays, stays)


async def test_a_policy_is_changed_in_place(observer: Recorder, clock: FakeClock) -> None:
    """Nobody leaves for it; the next decision is the new policy's, the one after a change back."""
    limits = CacheLimits(8)
    cache = make(limits, LRU(), observer, clock)
    await load(cache, A, B)
    cache.reconfigure(limits, GDSF())
    assert cache.keys() == {A, B}
    assert observer.evictions == []
    await load(cache, C)  # LRU would have let A go
    assert cache.keys() == {A, C}
    cache.reconfigure(limits, LRU())
    await load(cache, D)
    assert cache.keys() == {C, D}


@pytest.mark.parametrize("policy", [None, GDSF])
async def test_the_same_policy_keeps_what_it_has_learnt(
    policy: type[Policy] | None, observer: Recorder, clock: FakeClock
) -> None:
    """A change of limits, with no policy or one of the same class, forgets nothing."""
    cache = make(CacheLimits(8), GDSF(half_life=1e9), observer, clock)
    await load(cache, B, B, B, C)
    await cache.unload(B, timeout_s=60)
    cache.reconfigure(CacheLimits(8), policy() if policy is not None else None)
    await load(cache, B)
    clock.advance(1)
    await load(cache, C, D)  # B had four leases; C two, the last one after B's
    assert cache.keys() == {B, D}
