"""The real worker: its protocol, its limits, its end, and what it makes of a demo model."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from serve_app.engines.store import ArtifactStore
from serve_app.errors import ModelBrokenError
from serve_app.loading.prepare_worker import WorkerSettings, serve
from serve_app.loading.preparer import Preparer
from serve_app.types import ModelFormat, ModelKey, ModelSpec

MODEL = Path(__file__).parents[3] / "models" / "fasteners-n" / "1" / "model.pt"

SPIN = """
import sys
from serve_app.loading.prepare_worker import serve
def spin(path):
    print("begun", flush=True)
    while True: pass
serve(['{"path": "a.pt"}'], sys.stderr, spin, cpu_limit_s=0.1)
"""

PARENT = """
import subprocess, sys, time
worker = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
print(worker.pid, flush=True)
time.sleep(60)
"""


def _settings(folder: Path) -> WorkerSettings:
    return WorkerSettings("cpu", "fp32", "auto", folder, 2**30)


def _wait(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    patient_until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < patient_until
        time.sleep(0.02)


def test_settings_survive_the_command_line(tmp_path: Path) -> None:
    """Whatever the folder is called."""
    settings = WorkerSettings("cuda:1", "fp16", "openvino", tmp_path / "-a b", 12, cpu_limit_s=1.5)
    words = settings.command()
    assert words[0] == sys.executable
    assert WorkerSettings.parse(words[words.index("--device") :]) == settings


def test_each_request_is_answered() -> None:
    """A failed one is no end."""

    def prepare(path: Path) -> bool:
        if path.name == "broken.pt":
            raise ModelBrokenError("it is no model")
        if path.name == "odd.pt":
            raise KeyError(1)
        return path.name == "new.pt"

    names = ["broken.pt", "odd.pt", "known.pt", "new.pt"]
    answers = io.StringIO()
    serve([json.dumps({"path": name}) for name in names], answers, prepare, cpu_limit_s=60.0)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"ready": True},
        {"code": "model_broken", "detail": "it is no model"},
        {"code": "unexpected", "detail": "KeyError: 1"},
        {"made": False},
        {"made": True},
    ]
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_file_over_the_time_limit_ends_the_process() -> None:
    """Even where no exception would come through."""
    ended = subprocess.run([sys.executable, "-c", SPIN], capture_output=True, timeout=60)  # noqa: S603
    assert ended.stdout == b"begun\n"
    assert ended.returncode == -signal.SIGPROF


def test_worker_steps_back_and_ends_with_its_stdin(tmp_path: Path) -> None:
    """Nothing but answers comes out of its stdout; a file that is no model is refused."""
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no model")
    with subprocess.Popen(  # noqa: S603
        _settings(tmp_path / "store").command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert json.loads(worker.stdout.readline()) == {"ready": True}
        process = psutil.Process(worker.pid)
        assert process.nice() == 19
        assert os.sched_getscheduler(worker.pid) == os.SCHED_IDLE
        worker.stdin.write(json.dumps({"path": str(broken)}).encode() + b"\n")
        worker.stdin.close()
        answer = json.loads(worker.stdout.readline())
        assert answer["code"] == "model_broken"
        assert worker.stdout.read() == b""
        assert worker.wait(30) == 0


def test_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """Though another process may hold its stdin open."""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", PARENT, *_settings(tmp_path).command()], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.5)  # until it knows its parent
        parent.kill()
    _wait(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


async def test_demo_model_is_prepared(tmp_path: Path) -> None:
    """By a preparer and its real worker; the second preparer finds it done."""
    store = ArtifactStore(tmp_path / "store", 2**30)
    spec = ModelSpec(ModelKey("fasteners-n", "1"), ModelFormat.PT, "folder", str(MODEL))
    for _ in range(2):
        preparer = Preparer(_settings(store.folder).command(), store, idle_s=0.1)
        preparer.wanted([spec])
        async with asyncio.timeout(300):
            while preparer._queue:  # noqa: ASYNC110 - it is another process's work
                await asyncio.sleep(0.02)
        await preparer.aclose()
        kept = [path for path in store.folder.iterdir() if path.suffix == ".safetensors"]
        assert len(kept) == 1
        assert store.used_bytes > 2**20
