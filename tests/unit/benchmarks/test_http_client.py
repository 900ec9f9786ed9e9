"""The raw client against a real server on a socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from benchmarks.http_client import Client
from benchmarks.load import Generator, Probe, Target, cold_start
from benchmarks.records import NO_ANSWER
from benchmarks.workloads import W0, Arrival, Trace, Workload, closed_loop, open_loop

Answer = Callable[[bytes], bytes]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-Model-Cold-Start: true\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"


class Seen:
    """What a server was sent."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.port = 0


@asynccontextmanager
async def serving(answer: bytes, *, delay_s: float = 0.0) -> AsyncIterator[Seen]:
    """Run a server that gives everybody the same answer."""
    seen = Seen()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                lengths = [line for line in head if line.startswith("content-length")]
                length = int(lengths[0].partition(":")[2]) if lengths else 0
                seen.bodies.append(await reader.readexactly(length))
                seen.paths.append(head[0].split()[1])
                await asyncio.sleep(delay_s)
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()


async def test_a_connection_is_kept() -> None:
    """One after the other, all requests go over one connection."""
    async with serving(ANSWER) as seen:
        client = Client("127.0.0.1", seen.port)
        message = client.message("POST", "/v1/models/m00/predict", b"picture")
        answers = [await client.ask(message, 5.0) for _ in range(3)]
        client.close()
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"ok")] * 3
    assert seen.bodies == [b"picture"] * 3
    assert seen.connections == 1
    assert cold_start(answers[0]) is True


async def test_chunked_answers_are_read_whole() -> None:
    """Proxies send them so."""
    async with serving(CHUNKED) as seen:
        client = Client("127.0.0.1", seen.port)
        assert (await client.ask(client.message("GET", "/"), 5.0)).body == b"abc"
        client.close()


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_no_answer_is_status_0(answer: bytes) -> None:
    """A malformed answer and one that never ends are recorded, and nothing hangs."""
    async with serving(answer) as seen:
        client = Client("127.0.0.1", seen.port)
        response = await client.ask(client.message("GET", "/"), 0.2)
        assert response.status == NO_ANSWER
        assert (await client.ask(client.message("GET", "/"), 0.2)).status == NO_ANSWER
        client.close()
    assert seen.connections == 2


async def test_a_closed_loop_never_asks_more_than_its_clients(picture: str) -> None:
    """Every request of the trace is made once, over as many connections as there are clients."""
    workload = Workload(name="w", models=3, concurrency=2)
    async with serving(ANSWER, delay_s=0.01) as seen:
        target = Target(port=seen.port, names=("a", "b", "c"), image=picture)
        run = await Generator(closed_loop(workload, 10, 12), target).run()
    assert run.statuses == {"200": 12}
    assert seen.connections == 2
    assert not run.open_loop


async def test_a_closed_loop_ends_in_time(picture: str) -> None:
    """A slow server does not make it longer than its duration and one answer."""
    async with serving(ANSWER, delay_s=0.05) as seen:
        target = Target(port=seen.port, names=("a",), image=picture)
        run = await Generator(closed_loop(W0, 0.2, 10_000), target).run()
    assert 8 <= len(run.records) < 100


async def test_an_open_loop_waits_for_nobody(picture: str) -> None:
    """Requests overlap when answers are slow, and their latency says how slow."""
    trace = open_loop(Workload(name="w", models=1, cv=1.0), duration_s=0.2, rate=50)
    async with serving(ANSWER, delay_s=0.3) as seen:
        run = await Generator(trace, Target(port=seen.port, names=("a",), image=picture)).run()
    assert len(run.records) == 10
    assert seen.connections > 5
    assert min(run.latencies_s) >= 0.3


async def test_probes_run_beside_the_load(picture: str) -> None:
    """They stop with it."""
    trace = Trace("one", (Arrival(0.2, 0),), None, 0.2)
    async with serving(ANSWER) as seen:
        target = Target(port=seen.port, names=("a",), image=picture)
        run = await Generator(trace, target).run(Probe("/health/live", 0.02))
    assert len(run.probe_s) >= 3
    assert seen.paths.count("/health/live") == pytest.approx(len(run.probe_s), abs=1)
