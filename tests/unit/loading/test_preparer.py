"""The preparer outlives every worker, and leaves no process behind."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from serve_app.engines.files import identify
from serve_app.engines.store import ArtifactStore
from serve_app.loading.preparer import pause_after
from tests.unit.loading.preparer_bench import FILE_BYTES, Bench, spec_of, until


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Whatever a test did: no worker is left."""
    bench = Bench(tmp_path)
    yield bench
    for preparer in bench.preparers:
        await preparer.aclose()
    assert bench.alive() == []


async def test_files_are_prepared_once_by_one_worker_that_ends(bench: Bench) -> None:
    """Being told again of the same files starts nothing."""
    preparer = bench.preparer()
    specs = bench.specs("a.pt", "b.onnx", "c.pt")
    preparer.wanted(specs)
    preparer.wanted(specs)
    assert preparer.prepared() == frozenset()
    await until(lambda: len(bench.done()) == 3)
    assert bench.asked() == ["a.pt", "b.onnx", "c.pt"]
    await until(lambda: preparer.settled == 3)
    assert preparer.prepared() == frozenset(spec.key for spec in specs)
    await until(lambda: not bench.alive())

    preparer.wanted(specs)
    await asyncio.sleep(0.3)
    assert len(bench.workers()) == 1

    os.utime(bench.folder / "b.onnx", (1, 1))
    preparer.wanted(specs)
    await until(lambda: len(bench.done()) == 4)
    assert bench.asked()[3:] == ["b.onnx"]


async def test_only_files_of_folders_are_prepared(bench: Bench) -> None:
    """And what was opened, wherever it came from; what is gone is passed over."""
    preparer = bench.preparer()
    gone = spec_of(bench.folder / "gone.pt")
    preparer.wanted([spec_of(bench.file("official.pt"), "ultralytics"), gone, *bench.specs("a.pt")])
    preparer.opened(bench.file("fetched.pt"))
    preparer.opened(bench.file("strange.bin"))
    await until(lambda: len(bench.done()) == 2)
    await until(lambda: not bench.alive())
    assert bench.asked() == ["fetched.pt", "a.pt"]


async def test_opened_file_goes_first_while_others_wait(bench: Bench) -> None:
    """After the one in hand."""
    preparer = bench.preparer()
    preparer.wanted(bench.specs("slow-a.pt", "b.pt", "c.pt"))
    await until(lambda: bench.asked())
    preparer.opened(bench.folder / "c.pt")
    await until(lambda: len(bench.done()) == 3)
    assert bench.asked() == ["slow-a.pt", "c.pt", "b.pt"]


async def test_idle_worker_takes_what_comes_up(bench: Bench) -> None:
    """Starting one takes seconds."""
    preparer = bench.preparer(idle_s=20.0)
    preparer.wanted(bench.specs("a.pt"))
    await until(lambda: bench.done())
    preparer.opened(bench.file("b.pt"))
    await until(lambda: len(bench.done()) == 2)
    assert len(bench.workers()) == 1
    assert len(bench.alive()) == 1


async def test_refused_files_are_told_of_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """What may not be the file's fault is tried again."""
    preparer = bench.preparer()
    specs = bench.specs("broken.pt", "raise.pt", "a.pt")
    preparer.wanted(specs)
    await until(lambda: len(bench.done()) == 4)
    await until(lambda: not bench.alive())
    preparer.wanted(specs)
    preparer.opened(bench.folder / "broken.pt")
    await asyncio.sleep(0.2)
    assert bench.asked() == ["broken.pt", "raise.pt", "a.pt", "raise.pt"]
    assert len(bench.workers()) == 1
    assert caplog.text.count("it is no model") == 1
    assert caplog.text.count("KeyError: 1") == 1


@pytest.mark.parametrize(
    ("kind", "limit_s", "reason"),
    [
        ("killed", 5.0, "killed by SIGKILL"),
        ("odd", 5.0, "does not keep to the protocol"),
        ("long", 5.0, "does not keep to the protocol"),
        ("hang", 0.3, "did nothing for 0.3 s"),  # perhaps the disk was busy
    ],
)
async def test_file_that_ends_two_workers_is_set_aside(
    kind: str, limit_s: float, reason: str, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are prepared."""
    preparer = bench.preparer(stall_limit_s=limit_s)
    preparer.wanted(bench.specs(f"{kind}.pt", "a.pt"))
    await until(lambda: len(bench.asked()) == 3)
    await until(lambda: f"{kind}.pt is not prepared" in caplog.text)
    await until(lambda: not bench.alive())
    preparer.opened(bench.folder / f"{kind}.pt")
    preparer.opened(bench.file("b.pt"))
    await until(lambda: "b.pt" in bench.done())
    assert bench.asked() == [f"{kind}.pt", "a.pt", f"{kind}.pt", "b.pt"]
    assert reason in caplog.text


async def test_file_over_the_processor_time_is_set_aside_at_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It would take as long again; a new worker takes the others."""
    preparer = bench.preparer()
    preparer.wanted(bench.specs("spin.pt", "a.pt"))
    await until(lambda: bench.done() == ["a.pt"])
    await until(lambda: not bench.alive())
    assert bench.asked() == ["spin.pt", "a.pt"]
    assert "too much processor time" in caplog.text


def _fill(store: ArtifactStore, name: str, nbytes: int) -> None:
    def write(path: Path) -> None:
        path.write_bytes(bytes(nbytes))

    store.put(f"{name}.safetensors", write)


async def test_full_store_is_left_to_what_is_opened(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A larger fleet would have its files written in turn, each removing another's."""
    store = bench.store
    _fill(store, "other", store.limit_bytes - 2 * FILE_BYTES)
    preparer = bench.preparer()
    with caplog.at_level(logging.INFO):
        preparer.wanted(bench.specs("a.pt", "b.pt", "c.pt"))
        await until(lambda: len(bench.done()) == 3)  # these workers write nothing
        assert "only when opened" not in caplog.text

        _fill(store, "another", 1)
        preparer.wanted(bench.specs("d.pt", "e.pt", "f.pt"))
        preparer.opened(bench.folder / "f.pt")
        await until(lambda: not preparer._queue)
    assert bench.asked()[3:] == ["f.pt"]
    assert "2 models are prepared only when opened" in caplog.text


async def test_known_fleet_is_looked_at_in_few_hops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change in the registry tells of all files again."""
    preparer = bench.preparer()
    specs = bench.specs(*(f"{number}.pt" for number in range(600)))
    for spec in specs:
        preparer._queue.settle(identify(Path(spec.location)))
    hops = 0
    to_thread = asyncio.to_thread

    async def count(function: Callable[..., object], *args: object) -> object:
        nonlocal hops
        hops += 1
        return await to_thread(function, *args)

    monkeypatch.setattr(asyncio, "to_thread", count)
    preparer.wanted(specs)
    await until(lambda: not preparer._queue)
    assert hops == 4  # 1, 256, 256, 87
    assert bench.workers() == []


async def test_worker_that_gets_on_slowly_is_waited_for(bench: Bench) -> None:
    """On a busy machine it hardly runs; that is not the file's fault."""
    preparer = bench.preparer(stall_limit_s=0.1)
    preparer.wanted(bench.specs("busy.pt"))
    await until(lambda: bench.done())
    assert bench.asked() == ["busy.pt"]


async def test_what_a_library_prints_goes_to_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """However much it is, and whatever it holds."""
    preparer = bench.preparer()
    with caplog.at_level(logging.INFO):
        preparer.wanted(bench.specs("loud.pt"))
        await until(lambda: bench.done())
        await until(lambda: not bench.alive())
    assert "prepare worker: word word" in caplog.text


async def test_worker_that_cannot_start_is_told_of_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again, ever more rarely; no file is blamed."""
    preparer = bench.preparer(command=[sys.executable, "-S", "-c", "raise SystemExit(3)"])
    missing = bench.preparer(command=["/no/such/program"])
    preparer.wanted(bench.specs("a.pt"))
    missing.wanted(bench.specs("a.pt"))
    await until(lambda: preparer._losses >= 3 and missing._losses >= 3)
    assert caplog.text.count("ended with exit status 3") == 1
    assert caplog.text.count("No such file or directory") == 1
    assert "is not prepared" not in caplog.text


async def test_folder_that_cannot_be_made_is_told_of_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """No worker is started for it."""
    preparer = bench.preparer(store=ArtifactStore(bench.file("file") / "store", 2**20))
    preparer.wanted(bench.specs("a.pt"))
    await until(lambda: preparer._losses >= 3)
    assert caplog.text.count("preparing models pauses") == 1
    assert bench.workers() == []


def test_pauses_grow_to_a_limit() -> None:
    """So that a machine without memory is not kept busy starting workers."""
    assert [pause_after(losses, 1.0) for losses in (1, 2, 3, 7, 5000)] == [1, 2, 4, 60, 60]


async def test_store_of_no_size_has_nothing_prepared(bench: Bench) -> None:
    """There is nowhere to put it."""
    preparer = bench.preparer(store=ArtifactStore(bench.folder / "store", 0))
    preparer.wanted(bench.specs("a.pt"))
    preparer.opened(bench.folder / "a.pt")
    await asyncio.sleep(0.2)
    assert bench.workers() == []
    assert not (bench.folder / "store").exists()


async def test_one_worker_at_a_time_on_a_node(bench: Bench) -> None:
    """The other replica takes its turn when the first has nothing left to do."""
    preparers = [bench.preparer(idle_s=0.05) for _ in range(3)]
    for preparer in preparers:
        preparer.wanted(bench.specs("slow-a.pt", "slow-b.pt"))
    most = 0
    while len(bench.done()) < 6:
        most = max(most, len(bench.alive()))
        await asyncio.sleep(0.01)
    assert most == 1
    assert len(bench.workers()) == 3


async def test_closing_ends_a_worker_amid_a_file(bench: Bench) -> None:
    """And what it left unfinished goes; being told of files afterwards does nothing."""
    preparer = bench.preparer()
    preparer.wanted(bench.specs("hang.pt"))
    await until(lambda: bench.asked())
    await preparer.aclose()
    assert bench.alive() == []
    preparer.opened(bench.file("a.pt"))
    await preparer.aclose()
    assert bench.asked() == ["hang.pt"]


async def test_cancelled_closing_ends_the_worker_too(bench: Bench) -> None:
    """The replica may be in a hurry."""
    preparer = bench.preparer()
    preparer.wanted(bench.specs("hang.pt"))
    await until(lambda: bench.asked())
    closing = asyncio.create_task(preparer.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await until(lambda: not bench.alive())


@pytest.mark.parametrize("delay_ms", [0, 1, 2, 5, 10, 20, 40, 80, 160])
async def test_cancellation_at_any_time_leaves_no_process(bench: Bench, delay_ms: int) -> None:
    """Twice, as a loop that is being closed does."""
    before = set(psutil.Process().children())  # other tests' servers, which live on
    preparer = bench.preparer()
    preparer.wanted(bench.specs("slow-a.pt", "hang.pt"))
    await asyncio.sleep(delay_ms / 1000)
    assert preparer._task is not None
    preparer._task.cancel()
    await asyncio.sleep(0)
    preparer._task.cancel()
    with suppress(asyncio.CancelledError):
        await preparer._task
    await until(lambda: not set(psutil.Process().children()) - before, limit_s=5)
