"""A fleet of replicas without Ray: real holders over models that load at once."""

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from serve_app.errors import Failure, ModelExceedsBudgetError, OverloadedError, ServeAppError
from serve_app.fleet.holder import Holder
from serve_app.fleet.plan import Orders
from serve_app.types import Copies, ModelKey, ReplicaReport, ResidentModel

SIZE = 10


def report(
    name: str,
    *,
    models: Iterable[str | ResidentModel] = (),
    budget: int = 1000,
    used: int = 0,
    max_models: int | None = None,
    pinned: Iterable[str] = (),
    errors: Iterable[str] = (),
    load: dict[str, float] | None = None,
    spare_after_s: float | None = None,
) -> ReplicaReport:
    """Return a replica's state; models given by key are resident, long unused and of SIZE bytes."""
    held = (
        ResidentModel(one, "resident", SIZE, 0, pinned=False, idle_s=999)
        if isinstance(one, str)
        else one
        for one in models
    )
    return ReplicaReport(
        replica_id=name,
        pid=1,
        node_id="n",
        device="cpu",
        budget_bytes=budget,
        used_bytes=used,
        max_models=max_models,
        models=tuple(held),
        pinned=tuple(pinned),
        pin_errors=dict.fromkeys(errors, "model_broken: no"),
        load=load or {},
        spare_copies_after_s=spare_after_s,
    )


class Clock:
    """Goes when the test says so; whoever sleeps wakes once its time has come."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has gone on for so long."""
        woken = asyncio.Event()
        self._sleepers.append((self.now + seconds, woken))
        await woken.wait()

    async def go(self, seconds: float) -> None:
        """Let time pass, and whoever waits for it do what it then does."""
        self.now += seconds
        for due, woken in self._sleepers:
            if due <= self.now:
                woken.set()
        await settle()


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


class Replica:
    """One replica: a holder over a memory of `budget` bytes in which nothing is evicted."""

    def __init__(self, name: str, clock: Clock, budget: int = 1000) -> None:
        self.name, self.budget = name, budget
        self.models: set[str] = set()
        self.loads: list[str] = []
        self.spare_loads: list[str] = []
        self.broken: dict[str, ServeAppError] = {}
        self.holder = Holder(
            name,
            apply=lambda _: None,
            load=self.load,
            load_spare=self.load_spare,
            clock=clock,
            sleep=clock.sleep,
        )

    async def load(self, key: str) -> None:
        """Make `key` resident."""
        self.loads.append(key)
        await asyncio.sleep(0)
        if key in self.broken:
            raise self.broken[key]
        if self.budget < SIZE:
            raise ModelExceedsBudgetError(f"{key} can never fit")
        self.models.add(key)

    async def load_spare(self, key: str) -> None:
        """Make a second copy of `key` resident."""
        self.spare_loads.append(key)
        await self.load(key)

    def report(self) -> ReplicaReport:
        """Return its state."""
        plain = report(
            self.name,
            models=sorted(self.models),
            budget=self.budget,
            pinned=sorted(self.holder.pinned),
        )
        return ReplicaReport(
            **{name: getattr(plain, name) for name in plain.__slots__}
            | {
                "pin_errors": self.holder.errors,
                "second_copies": tuple(sorted(self.holder.second_copies)),
                "configured": self.holder.configured,
                "pins": self.holder.table.pins,
            }
        )


@dataclass
class FakeFleet:
    """The replicas that run; implements Fleet."""

    clock: Clock
    running: dict[str, Replica] = field(default_factory=dict)
    orders: list[Orders] = field(default_factory=list)
    asked: int = 0
    error: Exception | None = None

    def add(self, *names: str, budget: int = 1000, **configured: Copies) -> None:
        """Start replicas with what their `user_config` pins."""
        for name in names:
            self.running[name] = Replica(name, self.clock, budget)
            pins = {f"{key}@1": copies for key, copies in configured.items()}
            self.running[name].holder.configure(pins, ())

    async def remove(self, name: str) -> None:
        """End a replica."""
        await self.running.pop(name).holder.aclose()

    async def aclose(self) -> None:
        """End all."""
        for name in list(self.running):
            await self.remove(name)

    def pinned(self, key: str) -> set[str]:
        """Return where `key` is pinned."""
        return {name for name, one in self.running.items() if key in one.holder.pinned}

    def holding(self, key: str) -> set[str]:
        """Return where `key` is in memory."""
        return {name for name, one in self.running.items() if key in one.models}

    async def replicas(self) -> list[ReplicaReport]:
        """Return the reports."""
        self.asked += 1
        if self.error is not None:
            raise self.error
        reports = [self.running[name].report() for name in sorted(self.running)]
        await asyncio.sleep(0)  # by the time that they arrive they may be true no more
        return reports

    async def load(self, key: ModelKey, timeout_s: float) -> str:
        """Load on the first; one starts when there is none."""
        if not self.running:
            self.add("woken")
        name = min(self.running)
        await self.running[name].load(str(key))
        return name

    async def load_on(
        self, key: ModelKey, replica_ids: Collection[str], timeout_s: float
    ) -> dict[str, Failure | None]:
        """Load where told."""
        answers: dict[str, Failure | None] = {}
        for name in replica_ids:
            try:
                await self.running[name].load(str(key))
                answers[name] = None
            except ServeAppError as error:
                answers[name] = error.to_failure()
        return answers

    async def unload(self, key: ModelKey, timeout_s: float) -> int:
        """Release it everywhere."""
        held = self.holding(str(key))
        assert not self.pinned(str(key)), "a pinned model refuses to go"
        for name in held:
            self.running[name].models.discard(str(key))
        return len(held)

    async def order(self, orders: Orders) -> None:
        """Tell all."""
        if not self.running:
            raise OverloadedError("no detector replica is running now")
        self.orders.append(orders)
        for one in self.running.values():
            one.holder.take(orders)
        await settle()


class Late(Clock):
    """A clock two minutes behind another."""

    def __init__(self, right: Clock) -> None:
        super().__init__()
        self._right = right

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self._right() - 120
