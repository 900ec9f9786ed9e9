"""What a fault did to the requests, and the report of it. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from benchmarks.faults.watch import Look
from benchmarks.records import OK, Run, percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One fault under load; times are seconds, those with `at` since the start of the load.

    strike_at_s: when the fault was made
    recovered_s: from the fault until all was as before; None when it never was
    failed: requests of the steady load that were not answered with 200
    p50_s, p99_s: latency before the fault and from then on
    worst_s: the slowest answer
    statuses: of the steady load; probed: of requests for models that could not be loaded
    looks: how often replicas were asked what they hold, and looks_failed how often in vain
    over_budget: replicas seen with more than their budget, as `pid used of budget`
    """

    name: str
    what: str
    front: str
    strike_at_s: float
    recovered_s: float | None
    requests: int
    failed: int
    statuses: dict[str, int]
    p50_before_s: float
    p99_before_s: float
    p50_s: float
    p99_s: float
    worst_s: float
    cold: int
    probed: dict[str, int]
    looks: int
    looks_failed: int
    over_budget: tuple[str, ...]
    largest_share: float
    errors: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, no budget exceeded and all came back."""
        return not self.failed and not self.over_budget and self.recovered_s is not None

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `as_json` gave."""
        tuples = {key: tuple(plain[key]) for key in ("over_budget", "errors", "notes")}
        return cls(**{**plain, **tuples})


def judge(
    run: Run,
    looks: Sequence[Look],
    probed: Iterable[tuple[float, int]],
    burst: Iterable[int] = (),
    *,
    strike_at_s: float,
    **known: Any,  # noqa: ANN401 - the outcome's own fields
) -> Outcome:
    """Return the outcome of one fault.

    run: the steady load
    looks: at the replicas
    probed: time and status of requests for models that cannot be loaded for a while
    burst: statuses of the requests amid which the fault was made
    known: further fields of the outcome
    """
    before = [r.latency_s for r in run.ok if r.scheduled_s < strike_at_s]
    since = [r.latency_s for r in run.ok if r.scheduled_s >= strike_at_s]
    statuses = Counter(run.statuses) + Counter(map(str, burst))
    held = [replica for look in looks for replica in look.replicas]
    return Outcome(
        strike_at_s=strike_at_s,
        requests=statuses.total(),
        failed=statuses.total() - statuses[str(OK)],
        statuses=dict(statuses),
        p50_before_s=percentile(before, 50),
        p99_before_s=percentile(before, 99),
        p50_s=percentile(since, 50),
        p99_s=percentile(since, 99),
        worst_s=max(run.latencies_s, default=0.0),
        cold=len(run.cold_s),
        probed=dict(Counter(str(status) for _, status in probed)),
        looks=len(looks),
        looks_failed=sum(look.status != OK for look in looks),
        over_budget=tuple(
            f"{replica.pid} {replica.used_bytes} of {replica.budget_bytes}"
            for replica in held
            if replica.used_bytes > replica.budget_bytes
        ),
        largest_share=max((r.used_bytes / r.budget_bytes for r in held), default=0.0),
        errors=run.errors,
        **known,
    )
