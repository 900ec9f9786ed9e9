"""Reads what a run of the benchmarks has left in results.json. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks import plan
from benchmarks.records import Run, median

Json = Mapping[str, Any]
SLO_FACTOR = 5
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Growth:
    """Resident memory of a process before any model and after each, in bytes."""

    rss: Sequence[int]

    @property
    def whole(self) -> int:
        """What all models took, with what the first one takes once for all."""
        return self.rss[-1] - self.rss[0]

    @property
    def each(self) -> float:
        """What each model after the first took."""
        return (self.rss[-1] - self.rss[1]) / max(1, len(self.rss) - 2)

    def __str__(self) -> str:
        return f"{self.whole / MIB:.0f} MiB ({self.rss[0] / MIB:.0f} to {self.rss[-1] / MIB:.0f})"


class Pass:
    """All servers once; what was not measured is None."""

    def __init__(self, plain: Json) -> None:
        """Read one of the passes of results.json."""
        self._plain = plain
        self.run = cache(self._run)

    def data(self, server: str, step: str) -> Any:  # noqa: ANN401 - each step has its own shape
        """Return what a step gave."""
        return self._plain.get(server, {}).get(step)

    def grown(self, server: str) -> "Growth | None":
        """Return how a server's process grew in its step `grow`."""
        found = (self.data(server, "prepare") or {}).get("grow")
        return None if found is None else Growth([sample["rss"] for sample in found["memory"]])

    def bare(self, server: str) -> list[float] | None:
        """Return the latencies of a bare loop, in seconds."""
        found = self.data(server, "measure")
        return None if found is None else found["latencies_s"]

    def servers(self) -> Iterator[str]:
        """Yield the servers of this pass, in their order."""
        yield from self._plain

    def _run(self, server: str, step: str, part: str | None = None) -> Run | None:
        found = self.data(server, step)
        if found is not None and part is not None:
            found = found.get(part)
        return None if found is None else Run.from_json(found["run"])


class Results:
    """One run of the benchmarks."""

    def __init__(self, plain: Json) -> None:
        """Read the content of results.json."""
        self.plain = plain
        self.passes = [Pass(seen) for seen in plain["passes"]]

    @property
    def first(self) -> Pass:
        """The pass in which everything was measured."""
        return self.passes[0]

    def each(self, figure: Callable[[Pass], float | None]) -> list[float]:
        """Return a figure from every pass that has what it needs."""
        found = (figure(one) for one in self.passes)
        return [value for value in found if value is not None]

    @property
    def slo(self) -> tuple[float, str] | None:
        """Return the latency that counts as good, and which bare loop it was derived from."""
        for server in (plan.BARE_FP32, plan.BARE_AUTO):
            if (latencies := self.first.bare(server)) is not None:
                return SLO_FACTOR * median(latencies), server
        return None
