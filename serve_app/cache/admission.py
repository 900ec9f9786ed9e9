"""Admission: which models must go so that a load fits. Pure: it reads a ledger and decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from serve_app.cache.ledger import ByteLedger
from serve_app.cache.observer import EvictionReason
from serve_app.errors import ModelExceedsBudgetError, OverloadedError, ServeAppError
from serve_app.types import Footprint, ModelKey


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """What the operator allows. `pinned` may name models that are not resident (yet)."""

    budget_bytes: int
    max_models: int | None = None
    pinned: frozenset[ModelKey] = frozenset()

    def __post_init__(self) -> None:
        if self.budget_bytes < 0:
            raise ValueError(f"budget_bytes must not be negative, not {self.budget_bytes}")
        if self.max_models is not None and self.max_models < 1:
            raise ValueError(f"max_models must be 1 or more, or None, not {self.max_models}")

    def allow(self, ledger: ByteLedger) -> bool:
        """Tell whether everything in `ledger` may be held at once."""
        return ledger.used_bytes <= self.budget_bytes and self._allow_count(len(ledger))

    def allow_beside(self, ledger: ByteLedger, need: Footprint) -> bool:
        """Tell whether one more model fits beside everything in `ledger`."""
        used = ledger.used_bytes + ledger.extra_bytes(need)
        return used <= self.budget_bytes and self._allow_count(len(ledger) + 1)

    def charge(self, own_bytes: int) -> int:
        """Return the room that a model takes: its own bytes, or its slot where that is more.

        Where `max_models` binds before the bytes do, a small model keeps out as much as a large
        one; so it is charged at least the part of the budget that falls to one of so many.
        """
        return max(own_bytes, self.budget_bytes // self.max_models if self.max_models else 0)

    def _allow_count(self, count: int) -> bool:
        return self.max_models is None or count <= self.max_models


class Verdict(Enum):
    """What admission says of a load."""

    FITS = auto()  # once the victims are gone
    BUSY = auto()  # models in use or still loading are in the way: worth waiting
    PINNED = auto()  # pinned models are in the way: waiting does not help
    NEVER = auto()  # the model alone is larger than the budget


@dataclass(frozen=True, slots=True)
class Admission:
    """The verdict, the models to evict for it and the bound that made them go."""

    verdict: Verdict
    victims: tuple[ModelKey, ...] = ()
    reason: EvictionReason = "budget"


def admit(
    key: ModelKey,
    need: Footprint,
    ledger: ByteLedger,
    evictable: Sequence[ModelKey],
    limits: CacheLimits,
) -> Admission:
    """Decide whether `key` fits beside `ledger`, at the price of some of `evictable`.

    Args:
        key: the model to admit, not in `ledger`
        need: what it will hold
        ledger: what will be held without it, `evictable` included
        evictable: the models that may go, the first to go first
        limits: what may be held at most
    """
    if need.total_bytes > limits.budget_bytes:
        return Admission(Verdict.NEVER)
    if limits.allow_beside(ledger, need):
        return Admission(Verdict.FITS)
    crowded = ledger.copy()
    crowded.add(key, need)
    victims, enough = surplus(crowded, evictable, limits)
    if enough:
        over_budget = crowded.used_bytes > limits.budget_bytes
        return Admission(Verdict.FITS, victims, "budget" if over_budget else "max_models")
    pinned = ByteLedger()
    for other in limits.pinned:
        if other in ledger:
            pinned.add(other, ledger[other])
    busy = limits.allow_beside(pinned, need)
    return Admission(Verdict.BUSY if busy else Verdict.PINNED)


def surplus(
    ledger: ByteLedger, evictable: Sequence[ModelKey], limits: CacheLimits
) -> tuple[tuple[ModelKey, ...], bool]:
    """Return the models to evict so that `ledger` keeps to `limits`, and whether that is enough.

    They are taken in the order of `evictable`; then each that turns out to be unnecessary is
    spared, the last in order first. When all together are not enough, all are returned.
    """
    trial = ledger.copy()
    victims: list[ModelKey] = []
    for key in evictable:
        if limits.allow(trial):
            break
        trial.remove(key)
        victims.append(key)
    if not limits.allow(trial):
        return tuple(victims), False
    needed: list[ModelKey] = []
    for key in reversed(victims):
        trial.add(key, ledger[key])
        if not limits.allow(trial):
            trial.remove(key)
            needed.append(key)
    return tuple(reversed(needed)), True


def refusal(verdict: Verdict, key: ModelKey, need: Footprint, limits: CacheLimits) -> ServeAppError:
    """Return the error that tells why `key` was not admitted."""
    size, budget = in_mib(need.total_bytes), in_mib(limits.budget_bytes)
    if verdict is Verdict.NEVER:
        return ModelExceedsBudgetError(
            f"model {key} needs {size} MiB, more than the whole memory budget of {budget} MiB: "
            "raise memory_budget"
        )
    if verdict is Verdict.PINNED:
        return OverloadedError(
            f"model {key} ({size} MiB) does not fit beside the pinned models within {budget} MiB "
            f"and {limits.max_models or 'any number of'} models: pin fewer or raise the limits"
        )
    return OverloadedError(
        f"model {key} ({size} MiB) does not fit beside the models in use within {budget} MiB and "
        f"{limits.max_models or 'any number of'} models: try again later"
    )


def in_mib(count: int) -> str:
    """Write a number of bytes in MiB, with three digits below 10 MiB."""
    mib = count / 2**20
    return f"{mib:.0f}" if mib >= 10 or mib == int(mib) else f"{mib:.3g}"
