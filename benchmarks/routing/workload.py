"""Who is asked for when, on how large a fleet; follows from a seed. Pure."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.eviction import SIZES, WARM_UP, make_fleet
from benchmarks.workloads import SURGE_RAMP_S, W2, W4, Workload, popularity
from serve_app.types import ModelKey

SERVICE_S = (0.015, 0.017, 0.026, 0.034, 0.060)
"""Seconds of a small GPU for one request of a model of each of `SIZES`: n, s, m, l and x."""

Times = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SimModel:
    """A model of the fleet.

    id: its key as text, which is what routers know
    reload_s: seconds of a load from prepared weights on the node's disk
    service_s: seconds of the engine that one request takes
    """

    key: ModelKey
    id: str
    own_bytes: int
    reload_s: float
    service_s: float


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is.

    nodes: what the replicas are spread over evenly
    ingresses: routers, each with its own view
    """

    replicas: int = 64
    nodes: int = 16
    ingresses: int = 4
    models: int = 2000
    requests: int = 30_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One situation that every system is put into.

    room: part of the fleet's bytes that all budgets together hold
    load: part of what the replicas could do if every model were resident everywhere
    apart: whether each model's own arrivals are as bursty as the workload says, rather than those
        of all models together
    """

    workload: Workload
    room: float
    load: float
    apart: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `number` in the order of arrival, `at_s` seconds after the start."""

    number: int
    at_s: float
    model: SimModel


@dataclass(frozen=True, slots=True)
class Trace:
    """All requests, and the first of them that is counted."""

    fleet: Sequence[SimModel]
    requests: Sequence[Request]
    counted_from: int


CELLS = (
    *(Cell(load, room, part) for load in (W2, W4) for room in (0.25, 0.5) for part in (0.6, 0.8)),
    *(Cell(load, 0.25, 0.6, apart=False) for load in (W2, W4)),
)


def make_models(count: int, rng: random.Random) -> list[SimModel]:
    """Return `count` models whose sizes are dealt at random, in the usual shares."""
    service: Mapping[int, float] = {
        int(2 * parameters): seconds
        for (_, parameters), seconds in zip(SIZES, SERVICE_S, strict=True)
    }
    return [
        SimModel(key, str(key), model.own_bytes, model.reload_s, service[model.own_bytes])
        for key, model in make_fleet(count, rng).items()
    ]


def make_trace(cell: Cell, scale: Scale, seed: int) -> Trace:
    """Return the requests of one cell.

    Arrivals are renewal processes of Gamma gaps. Time is then stretched, in each half by itself,
    so that exactly the cell's load is offered, whichever models came out popular.
    """
    fleet = make_models(scale.models, random.Random(seed))  # noqa: S311 - a trace is no secret
    rng = np.random.default_rng(seed)
    workload = cell.workload.scaled(scale.models)
    surging = _surging(fleet) if workload.surge else None
    usual = [model for model in fleet if model is not surging]
    arrivals = _apart if cell.apart else _together
    times, ranks = arrivals(workload, len(usual), scale.requests, rng)
    asked = [usual[rank] for rank in ranks]
    half = scale.requests // 2
    capacity = cell.load * scale.replicas
    first = _stretched(times[:half], asked[:half], capacity)
    later, models = times[half:], asked[half:]
    if surging is not None:
        models = _surged(later, models, surging, capacity, rng)
    second = first[-1] + _stretched(later, models, capacity)
    stamped = zip([*first, *second], asked[:half] + models, strict=True)
    requests = [Request(i, float(at), model) for i, (at, model) in enumerate(stamped)]
    return Trace(fleet, requests, int(WARM_UP * len(requests)))


def _surging(fleet: Sequence[SimModel]) -> SimModel:
    """Return the last model of size s, whose requests take about as long as the mean request."""
    return next(model for model in reversed(fleet) if model.service_s == SERVICE_S[1])


def _together(
    workload: Workload, models: int, count: int, rng: np.random.Generator
) -> tuple[Times, list[int]]:
    """Return `count` arrivals of one renewal process, in no unit, and the rank of each."""
    shape = workload.cv**-2
    times: Times = np.cumsum(rng.gamma(shape, 1 / shape, size=count))
    ranks = rng.choice(models, size=count, p=popularity(models, workload.alpha))
    return times, [int(rank) for rank in ranks]


def _apart(
    workload: Workload, models: int, count: int, rng: np.random.Generator
) -> tuple[Times, list[int]]:
    """Return the same of one renewal process for each model, merged."""
    means = np.arange(1, models + 1, dtype=np.float64) ** workload.alpha
    horizon = count / float((1 / means).sum())
    while True:
        each = [_renewals(float(mean), workload.cv, horizon, rng) for mean in means]
        times = np.concatenate(each)
        if len(times) >= count:
            break
        horizon *= 1.5
    ranks = np.repeat(np.arange(models), [len(some) for some in each])
    order = np.argsort(times, kind="stable")[:count]
    return times[order], [int(rank) for rank in ranks[order]]


def _renewals(mean: float, cv: float, horizon: float, rng: np.random.Generator) -> Times:
    """Return the arrivals of one model before `horizon`, gaps of `mean` and `cv`."""
    shape = cv**-2
    at = rng.random() * mean
    parts = []
    while at < horizon:
        gaps = rng.gamma(shape, mean / shape, size=int(1.2 * (horizon - at) / mean) + 16)
        part = at + np.concatenate(([0.0], np.cumsum(gaps)))
        parts.append(part[:-1])
        at = float(part[-1])
    times = np.concatenate(parts) if parts else np.zeros(0)
    return times[times < horizon]


def _stretched(times: Times, asked: Sequence[SimModel], capacity: float) -> Times:
    """Return `times` from zero on, over as many seconds as the work needs at this capacity."""
    work_s = sum(model.service_s for model in asked)
    since = times - times[0]
    stretched: Times = since / float(since[-1]) * (work_s / capacity)
    return stretched


def _surged(
    times: Times,
    asked: Sequence[SimModel],
    surging: SimModel,
    capacity: float,
    rng: np.random.Generator,
) -> list[SimModel]:
    """Return `asked` with every second request for `surging`, after a second of more and more."""
    half_of_them = rng.random(len(asked)) < 0.5
    final = [surging if taken else model for taken, model in zip(half_of_them, asked, strict=True)]
    ramp = np.minimum(1.0, _stretched(times, final, capacity) / SURGE_RAMP_S)
    taken = half_of_them & (rng.random(len(asked)) < ramp)
    return [surging if take else model for take, model in zip(taken, asked, strict=True)]
