"""What a fault did to the requests, and the report of it. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from benchmarks.faults.watch import Look
from benchmarks.records import OK, Run, percentile

SLOW_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One fault under load; times are seconds, those with `at` since the start of the load.

    strike_at_s: when the fault was made
    recovered_s: from the fault until all was as before; None when it never was
    failed: requests, those of the burst included, that were not answered with 200
    failed_later, failed_until_s: those of the steady load that were sent after the fault, and how
        long after it the last of them was; None if there is none
    under_way: requests that had been sent and not answered as the fault was made
    spares_under_way: whether even those had to be answered
    slow, slow_until_s: requests that took over a second from the fault on, and how long after it
        the last of them was sent; None if there is none
    p50_s, p99_s: latency before the fault and from then on
    worst_s: the slowest answer
    cold, cold_before: requests that found their model not loaded, and those before the fault
    statuses: of the steady load; probed: of requests for models that could not be loaded
    looks: how often replicas were asked what they hold, and looks_failed how often in vain
    changes: what replicas were seen to load and evict, for whoever wants to know why
    over_budget: replicas seen with more than their budget, as `pid used of budget`
    """

    name: str
    what: str
    front: str
    strike_at_s: float
    recovered_s: float | None
    requests: int
    failed: int
    failed_later: int
    failed_until_s: float | None
    under_way: int
    spares_under_way: bool
    slow: int
    slow_until_s: float | None
    statuses: dict[str, int]
    p50_before_s: float
    p99_before_s: float
    p50_s: float
    p99_s: float
    worst_s: float
    cold: int
    cold_before: int
    probed: dict[str, int]
    looks: int
    looks_failed: int
    over_budget: tuple[str, ...]
    largest_share: float
    errors: tuple[str, ...]
    notes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, no budget exceeded and all came back."""
        lost = self.failed if self.spares_under_way else self.failed_later
        return not lost and not self.over_budget and self.recovered_s is not None

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `as_json` gave."""
        tuples = {key: tuple(plain[key]) for key in ("over_budget", "errors", "notes", "changes")}
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
    slow = [r for r in run.records if r.done_s >= strike_at_s and r.latency_s > SLOW_S]
    later = [r for r in run.records if r.sent_s > strike_at_s and r.status != OK]
    burst = tuple(burst)
    before = [r.latency_s for r in run.ok if r.scheduled_s < strike_at_s]
    since = [r.latency_s for r in run.ok if r.scheduled_s >= strike_at_s]
    statuses = Counter(run.statuses) + Counter(map(str, burst))
    held = [replica for look in looks for replica in look.replicas]
    return Outcome(
        strike_at_s=strike_at_s,
        requests=statuses.total(),
        failed=statuses.total() - statuses[str(OK)],
        failed_later=len(later),
        failed_until_s=max((r.sent_s - strike_at_s for r in later), default=None),
        under_way=len(burst) + sum(r.sent_s <= strike_at_s < r.done_s for r in run.records),
        slow=len(slow),
        slow_until_s=max((r.sent_s - strike_at_s for r in slow), default=None),
        statuses=dict(statuses),
        p50_before_s=percentile(before, 50),
        p99_before_s=percentile(before, 99),
        p50_s=percentile(since, 50),
        p99_s=percentile(since, 99),
        worst_s=max(run.latencies_s, default=0.0),
        cold=len(run.cold_s),
        cold_before=sum(bool(r.cold) for r in run.ok if r.scheduled_s < strike_at_s),
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
        changes=tuple(changes(looks)),
        **known,
    )


def changes(looks: Sequence[Look]) -> Iterator[str]:
    """Return what each replica came to hold and no longer held, look by look."""
    held: dict[int, frozenset[str]] = {}
    for look in looks:
        for replica in look.replicas:
            before, now = held.get(replica.pid), frozenset(replica.resident)
            held[replica.pid] = now
            if before is not None and before != now:
                new, lost = (" ".join(sorted(one)) for one in (now - before, before - now))
                yield f"{look.at_s:.1f} s: {replica.pid} +[{new}] -[{lost}]"
