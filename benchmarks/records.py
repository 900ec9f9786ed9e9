"""What a load generator saw, and the figures that follow from it. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

OK = 200
NO_ANSWER = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One request; times are seconds since the start of the run.

    scheduled_s: when it was due (open loop), when it was sent (closed loop)
    status: of the answer; 0 when there was none in time
    cold: what `X-Model-Cold-Start` said, None where there was no such header
    retry_after_s: what `Retry-After` said, None where there was no such header
    """

    model: int
    scheduled_s: float
    sent_s: float
    done_s: float
    status: int
    cold: bool | None = None
    retry_after_s: float | None = None

    @property
    def latency_s(self) -> float:
        """Seconds from the scheduled arrival to the last byte of the answer."""
        return self.done_s - self.scheduled_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One trace played against one server.

    limit_s: the trace's own duration
    client_cpu_s: what the load generator itself took of the cores
    probe_s: latencies of GET requests sent beside the load at a fixed pace
    errors: the first bodies that were no 200
    """

    records: tuple[Record, ...]
    limit_s: float
    open_loop: bool
    client_cpu_s: float
    probe_s: tuple[float, ...] = ()
    errors: tuple[str, ...] = ()
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start to the last answer."""
        return max((record.done_s for record in self.records), default=0.0)

    @property
    def ok(self) -> tuple[Record, ...]:
        """The requests that were answered with 200."""
        return tuple(record for record in self.records if record.status == OK)

    @property
    def rate(self) -> float:
        """Answers per second, over the time that they took."""
        return len(self.ok) / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def latencies_s(self) -> list[float]:
        """Of all answered requests, in order of their records."""
        return [record.latency_s for record in self.ok]

    @property
    def cold_s(self) -> list[float]:
        """Latencies of the requests whose model had to be loaded."""
        return [record.latency_s for record in self.ok if record.cold]

    @property
    def warm_s(self) -> list[float]:
        """Latencies of the requests that found their model loaded."""
        return [record.latency_s for record in self.ok if record.cold is False]

    @property
    def server_errors(self) -> int:
        """Requests that got a 5xx or no answer."""
        return sum(r.status == NO_ANSWER or r.status >= 500 for r in self.records)

    def within(self, slo_s: float) -> float:
        """Return the share of all requests that were answered within `slo_s`."""
        if not self.records:
            return 0.0
        return sum(latency <= slo_s for latency in self.latencies_s) / len(self.records)

    def goodput(self, slo_s: float) -> float:
        """Return answers within `slo_s` per second of the trace's own duration."""
        seconds = self.limit_s if self.open_loop else self.elapsed_s
        good = sum(latency <= slo_s for latency in self.latencies_s)
        return good / seconds if seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        plain = asdict(self)
        plain["records"] = [
            [r.model, r.scheduled_s, r.sent_s, r.done_s, r.status, r.cold, r.retry_after_s]
            for r in self.records
        ]
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """Return what `as_json` gave."""
        records = tuple(Record(*values) for values in plain["records"])
        tuples = {key: tuple(plain[key]) for key in ("probe_s", "errors")}
        return cls(**{**plain, **tuples, "records": records})


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile; not a number where there are no values."""
    return float(np.percentile(values, percent)) if len(values) else float("nan")


def median(values: Sequence[float]) -> float:
    """Return the median; not a number where there are no values."""
    return percentile(values, 50)
