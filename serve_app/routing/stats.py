"""What a replica tells the routers about itself, and how it travels.

Every change is sent to every router, so numbers are rounded where they are measured.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from serve_app.routing.idfilter import IdFilter

MAX_PARKED = 256
"""Parked ids that are told at most; a model that is not named counts as prepared."""
MAX_BUSY = 10
"""Models whose share of a replica is told at most."""
MIN_BUSY = 0.1
"""Smaller shares are not told: such a model needs no second copy."""
_MAX_IDS = 4096
_FREE_STEPS = 32


@dataclass(frozen=True, slots=True)
class RoutingStats:
    """One replica as routers see it; 0, empty or None where nothing is known.

    budget_bytes: what its models may hold
    free_bytes: what is left of that, in steps of a 32nd of the budget
    room_bytes: what could be free if all but its pinned models went, in the same steps
    model_bytes: what a model there takes by itself, on average
    request_s: seconds of its device that one request took lately
    load_s: seconds that a load from prepared weights took lately
    loading: ids that it advertises and that are not resident yet
    parked: ids in host memory, one copy away from the device
    prepared: ids whose prepared weights lie on its node
    busy: share of its capacity (0..1) that its hottest models took lately
    late_s: for how long a step of its engine has run that takes much longer than expected, rounded
        down to a power of two; 0 below a second
    """

    budget_bytes: int = 0
    free_bytes: int = 0
    room_bytes: int | None = None
    model_bytes: int = 0
    request_s: float = 0.0
    load_s: float = 0.0
    loading: frozenset[str] = frozenset()
    parked: frozenset[str] = frozenset()
    prepared: IdFilter | None = None
    busy: Mapping[str, float] = field(default_factory=dict, hash=False)
    late_s: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        """Return plain data; equal statistics give equal data."""
        return {
            "budget_bytes": self.budget_bytes,
            "free_bytes": self.free_bytes,
            "room_bytes": self.room_bytes,
            "model_bytes": self.model_bytes,
            "request_s": self.request_s,
            "load_s": self.load_s,
            "loading": sorted(self.loading),
            "parked": sorted(self.parked),
            "prepared": None if self.prepared is None else self.prepared.to_wire(),
            "busy": dict(sorted(self.busy.items())),
            "late_s": self.late_s,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """Read what `to_wire` made; what is missing or odd counts as unknown."""
        budget_bytes = int(_number(wire.get("budget_bytes")))
        room_bytes = _whole(wire.get("room_bytes"))
        busy = wire.get("busy")
        shares = busy.items() if isinstance(busy, Mapping) else ()
        return cls(
            budget_bytes=budget_bytes,
            free_bytes=min(int(_number(wire.get("free_bytes"))), budget_bytes),
            room_bytes=None if room_bytes is None else min(room_bytes, budget_bytes),
            model_bytes=int(_number(wire.get("model_bytes"))),
            request_s=_number(wire.get("request_s")),
            load_s=_number(wire.get("load_s")),
            loading=_ids(wire.get("loading")),
            parked=_ids(wire.get("parked")),
            prepared=IdFilter.from_wire(wire.get("prepared")),
            busy={id_: min(1.0, _number(s)) for id_, s in shares if isinstance(id_, str)},
            late_s=_number(wire.get("late_s")),
        )


def rounded_free_bytes(budget_bytes: int, used_bytes: int) -> int:
    """Return what is free, rounded down to a 32nd of the budget."""
    step = max(1, budget_bytes // _FREE_STEPS)
    return max(0, budget_bytes - used_bytes) // step * step


def rounded(value: float) -> float:
    """Return a number with two significant digits."""
    return float(f"{value:.2g}")


def rounded_late_s(seconds: float) -> float:
    """Return the power of two below so many seconds, 0 below a second."""
    return 2.0 ** int(math.log2(seconds)) if seconds >= 1 else 0.0


def hottest(shares: Mapping[str, float]) -> dict[str, float]:
    """Return the shares that are worth telling, in steps of a twentieth."""
    largest = sorted(shares.items(), key=lambda item: (-item[1], item[0]))[:MAX_BUSY]
    return {id_: round(20 * min(1.0, s)) / 20 for id_, s in largest if s >= MIN_BUSY}


def _number(value: object) -> float:
    """Return a number that is finite and not negative; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if math.isfinite(value) and value > 0 else 0.0


def _whole(value: object) -> int | None:
    """Return a whole number that is not negative, where 0 means something; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value >= 0 else None


def _ids(value: object) -> frozenset[str]:
    if not isinstance(value, Collection) or isinstance(value, str | bytes | Mapping):
        return frozenset()
    return frozenset([id_ for id_ in value if isinstance(id_, str)][:_MAX_IDS])
