"""Traces of requests that follow from a seed: which model, and in open loop when. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

SURGE_RAMP_S = 1.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: `at_s` seconds after the start (0 in closed loop), for model number `model`."""

    at_s: float
    model: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What a load generator plays.

    concurrency: clients of a closed loop, each waiting for its answer; None for an open loop
    duration_s: when the last arrival may be scheduled (open), when to stop asking (closed)
    """

    name: str
    arrivals: tuple[Arrival, ...]
    concurrency: int | None
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Who is asked for, and how requests arrive; one of performance.md's W0-W4, or like them.

    models: how many there are
    alpha: popularity of model i ~ (i + 1) ** -alpha; 0 is uniform
    concurrency: clients of a closed loop; None for an open loop
    cv: coefficient of variation of the gaps between arrivals (open loop)
    surge: the last model, cold until half-time, then takes half of the requests within a second
    """

    name: str
    models: int
    alpha: float = 0.0
    concurrency: int | None = None
    cv: float = 1.0
    surge: bool = False
    seed: int = 0

    def scaled(self, models: int) -> Self:
        """Return the same workload over another number of models."""
        return replace(self, models=models)


W0 = Workload(name="W0", models=1, concurrency=8)
W1 = Workload(name="W1", models=64, alpha=0.5, cv=1.0, seed=1)
W2 = Workload(name="W2", models=256, alpha=1.0, cv=4.0, seed=2)
W3 = Workload(name="W3", models=256, alpha=0.0, cv=1.0, seed=3)
W4 = Workload(name="W4", models=64, alpha=1.5, cv=8.0, surge=True, seed=4)


def popularity(models: int, alpha: float) -> npt.NDArray[np.float64]:
    """Return each model's share of the requests, the most popular first, (models,)."""
    if models < 1:
        raise ValueError(f"models: {models}, expected at least 1")
    shares = np.power(np.arange(1, models + 1, dtype=np.float64), -alpha)
    normalised: npt.NDArray[np.float64] = shares / shares.sum()
    return normalised


def closed_loop(workload: Workload, duration_s: float, count: int) -> Trace:
    """Return up to `count` requests that `workload.concurrency` clients take in turn."""
    if workload.concurrency is None:
        raise ValueError(f"{workload.name} has no concurrency: it is no closed loop")
    random = np.random.default_rng(workload.seed)
    drawn = random.choice(
        workload.models, size=count, p=popularity(workload.models, workload.alpha)
    )
    arrivals = tuple(Arrival(0.0, int(model)) for model in drawn)
    return Trace(workload.name, arrivals, workload.concurrency, duration_s)


def open_loop(workload: Workload, duration_s: float, rate: float) -> Trace:
    """Return requests at `rate` per second, whoever is still waiting.

    The gaps are drawn from a Gamma distribution and stretched so that exactly rate x duration
    requests fall into the time: a short bursty trace would else offer another load than asked for.
    """
    count = max(1, round(rate * duration_s))
    random = np.random.default_rng(workload.seed)
    shape = workload.cv**-2
    gaps = random.gamma(shape, size=count + 1)
    total = float(gaps.sum())
    times = np.cumsum(gaps)[:-1] / total * duration_s if total > 0 else np.zeros(count)
    models = _draw(workload, times, duration_s, random)
    arrivals = tuple(
        Arrival(float(at), int(model)) for at, model in zip(times, models, strict=True)
    )
    return Trace(workload.name, arrivals, None, duration_s)


def in_turn(models: int, rounds: int, duration_s: float, name: str = "turn") -> Trace:
    """Return requests for each model in turn, one after the other: the worst case for LRU."""
    arrivals = tuple(Arrival(0.0, model) for _ in range(rounds) for model in range(models))
    return Trace(name, arrivals, 1, duration_s)


def surge_share(at_s: float, duration_s: float) -> float:
    """Return the share of the requests that the surging model takes at this time."""
    return 0.5 * min(1.0, max(0.0, (at_s - duration_s / 2) / SURGE_RAMP_S))


def counts(models: int, arrivals: Sequence[Arrival]) -> list[int]:
    """Return how often each model is asked for."""
    found = [0] * models
    for arrival in arrivals:
        found[arrival.model] += 1
    return found


def _draw(
    workload: Workload,
    times: npt.NDArray[np.float64],
    duration_s: float,
    random: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return the model that is asked for at each of `times`, (n,)."""
    usual = workload.models - workload.surge
    models = random.choice(usual, size=len(times), p=popularity(usual, workload.alpha))
    if workload.surge:
        shares = [surge_share(float(at), duration_s) for at in times]
        models[random.random(len(times)) < shares] = workload.models - 1
    return models.astype(np.int64)
