"""Plays a trace against a server, in a process of its own: `python -m benchmarks.load`.

It takes a job as JSON on its standard input and gives a Run as JSON on its standard output. It
shares the machine's cores with the server, so what it takes of them is part of every result.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.http_client import Client, Response
from benchmarks.records import OK, Record, Run
from benchmarks.workloads import Arrival, Trace

KEPT_ERRORS = 5
MULTIPLEXED_HEADER = "serve_multiplexed_model_id"
DRAIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server, and what it is asked.

    multiplexed_header: also name the model in the header by which Ray Serve routes
    timeout_s: how long the generator waits for one answer
    """

    port: int
    names: tuple[str, ...]
    image: str
    multiplexed_header: bool = False
    host: str = "127.0.0.1"
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A GET that is sent at a fixed pace beside the load, to see how busy an event loop is."""

    path: str
    interval_s: float = 0.05


def play(trace: Trace, target: Target, probe: Probe | None = None) -> Run:
    """Play a trace in a new process, which ends within the trace's time and that of one answer."""
    job = {
        "trace": asdict(trace),
        "target": asdict(target),
        "probe": None if probe is None else asdict(probe),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        timeout=trace.duration_s + target.timeout_s + DRAIN_S,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return Run.from_json(json.loads(done.stdout))


class Generator:
    """Plays one trace; every request is recorded."""

    def __init__(self, trace: Trace, target: Target, kept_errors: int = KEPT_ERRORS) -> None:
        """Make all messages, so that nothing is left to do but to send them.

        kept_errors: how many answers that were no 200 are kept as they were
        """
        self._trace = trace
        self._kept_errors = kept_errors
        self._timeout_s = target.timeout_s
        self._client = Client(target.host, target.port)
        self._messages = self._compose(target)
        self._records: list[Record] = []
        self._errors: list[str] = []
        self._probed: list[float] = []
        self._start = 0.0

    async def run(self, probe: Probe | None = None) -> Run:
        """Play it to its end and return what was seen."""
        used = time.process_time()
        self._start = time.perf_counter()
        probing = asyncio.create_task(self._probe(probe)) if probe else None
        try:
            await (self._closed() if self._trace.concurrency else self._open())
        finally:
            if probing is not None:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)
            self._client.close()
        return Run(
            records=tuple(self._records),
            limit_s=self._trace.duration_s,
            open_loop=self._trace.concurrency is None,
            client_cpu_s=time.process_time() - used,
            probe_s=tuple(self._probed),
            errors=tuple(self._errors),
            statuses=dict(Counter(str(record.status) for record in self._records)),
        )

    def _compose(self, target: Target) -> dict[int, bytes]:
        image = Path(target.image).read_bytes()
        messages = {}
        for model in {arrival.model for arrival in self._trace.arrivals}:
            name = target.names[model]
            headers = {MULTIPLEXED_HEADER: name} if target.multiplexed_header else {}
            path = f"/v1/models/{name}/predict"
            messages[model] = self._client.message("POST", path, image, headers)
        return messages

    async def _closed(self) -> None:
        """Each client asks for the next model of the trace once it has its answer."""
        waiting = iter(self._trace.arrivals)

        async def client() -> None:
            for arrival in waiting:
                now = self._now()
                if now > self._trace.duration_s:
                    return
                await self._one(arrival.model, now)

        await asyncio.gather(*(client() for _ in range(self._trace.concurrency or 1)))

    async def _open(self) -> None:
        """Every request is sent when it is due, however many are still waiting."""
        async with asyncio.TaskGroup() as tasks:
            for arrival in self._trace.arrivals:
                await asyncio.sleep(max(0.0, arrival.at_s - self._now()))
                tasks.create_task(self._one(arrival.model, arrival.at_s))

    async def _one(self, model: int, scheduled_s: float) -> None:
        sent = self._now()
        response = await self._client.ask(self._messages[model], self._timeout_s)
        if response.status != OK and len(self._errors) < self._kept_errors:
            self._errors.append(f"{response.status} {response.body[:300].decode(errors='replace')}")
        said = cold_start(response), retry_after_s(response)
        self._records.append(Record(model, scheduled_s, sent, self._now(), response.status, *said))

    async def _probe(self, probe: Probe) -> None:
        message = self._client.message("GET", probe.path)
        while True:
            due = self._now() + probe.interval_s
            before = self._now()
            response = await self._client.ask(message, self._timeout_s)
            if response.status == OK:
                self._probed.append(self._now() - before)
            await asyncio.sleep(max(0.0, due - self._now()))

    def _now(self) -> float:
        return time.perf_counter() - self._start


def cold_start(response: Response) -> bool | None:
    """Return what an answer says of its model, None where it says nothing."""
    said = response.headers.get("x-model-cold-start")
    return None if said is None else said.lower() == "true"


def retry_after_s(response: Response) -> float | None:
    """Return for how many seconds an answer asks its client to stay away, None where it does not.

    Raises:
        ValueError: it says a date, which no server here does
    """
    said = response.headers.get("retry-after")
    return None if said is None else float(said)


def read_job(plain: Mapping[str, Any]) -> tuple[Trace, Target, Probe | None]:
    """Return the trace, target and probe of a job."""
    arrivals = tuple(Arrival(**arrival) for arrival in plain["trace"]["arrivals"])
    trace = Trace(**{**plain["trace"], "arrivals": arrivals})
    target = Target(**{**plain["target"], "names": tuple(plain["target"]["names"])})
    probe = plain["probe"]
    return trace, target, None if probe is None else Probe(**probe)


def main() -> None:
    """Play the job on standard input."""
    trace, target, probe = read_job(json.load(sys.stdin))
    run = uvloop.run(Generator(trace, target).run(probe))
    json.dump(run.as_json(), sys.stdout)


if __name__ == "__main__":
    main()
