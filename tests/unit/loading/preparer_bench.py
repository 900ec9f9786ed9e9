"""Preparers whose workers are real processes that speak the real protocol.

They do by the file's name what a library does by mishap.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from serve_app.engines.store import ArtifactStore
from serve_app.loading.preparer import Preparer
from serve_app.types import ModelFormat, ModelKey, ModelSpec

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
log = Path(sys.argv[1])
def note(event, path=""):
    with log.open("a") as file:
        file.write(f"{event} {os.getpid()} {path}\\n")
def say(message):
    answers.write(json.dumps(message) + "\\n"); answers.flush()
note("start")
say({"ready": True})
for line in sys.stdin:
    path = Path(json.loads(line)["path"])
    note("file", path.name)
    kind = path.stem.partition("-")[0]
    if kind == "hang": time.sleep(60)
    elif kind == "spin": signal.setitimer(signal.ITIMER_PROF, 0.05); [None for _ in iter(int, 1)]
    elif kind == "busy":
        until = time.process_time() + 0.3
        while time.process_time() < until: pass
    elif kind == "killed": os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "odd": answers.write("Hello!\\n"); answers.flush(); continue
    elif kind == "long": answers.write("x" * 300_000 + "\\n"); answers.flush(); continue
    elif kind == "loud": print("word " * 50_000); os.write(2, b"\\xff")
    elif kind == "slow": time.sleep(0.3)
    if kind == "broken": say({"code": "model_broken", "detail": "it is no model"})
    elif kind == "raise": say({"code": "unexpected", "detail": "KeyError: 1"})
    else: say({"made": True})
    note("done", path.name)
"""

FILE_BYTES = 7


@dataclass
class Bench:
    """A folder with files, a worker script, and preparers over one store."""

    folder: Path
    preparers: list[Preparer] = field(default_factory=list)

    @property
    def store(self) -> ArtifactStore:
        """Return a view of the store that all share."""
        return ArtifactStore(self.folder / "store", 2**20)

    def preparer(self, **options: object) -> Preparer:
        """Return a preparer with short times, closed in the end."""
        script = self.folder / "worker.py"
        script.write_text(WORKER)
        command = [sys.executable, "-S", str(script), str(self.folder / "log")]
        values: dict[str, Any] = {
            "idle_s": 0.1,
            "pause_s": 0.01,
            "poll_s": 0.01,
            "stall_limit_s": 5.0,
            **options,
        }
        made = Preparer(values.pop("command", command), values.pop("store", self.store), **values)
        self.preparers.append(made)
        return made

    def file(self, name: str) -> Path:
        """Write a file that stands for a model."""
        path = self.folder / name
        path.write_bytes(bytes(FILE_BYTES))
        return path

    def specs(self, *names: str) -> list[ModelSpec]:
        """Write files and return them as registered versions."""
        return [spec_of(self.file(name)) for name in names]

    def events(self) -> list[tuple[str, int, str]]:
        """Return what the workers noted: event, process id, file."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        found = [line.split(" ") for line in lines]
        return [(event, int(pid), name) for event, pid, name in found]

    def asked(self) -> list[str]:
        """Return the files that workers were asked for."""
        return [name for event, _, name in self.events() if event == "file"]

    def done(self) -> list[str]:
        """Return the files that workers answered for."""
        return [name for event, _, name in self.events() if event == "done"]

    def workers(self) -> list[int]:
        """Return the process ids of all workers that ran."""
        return [pid for event, pid, _ in self.events() if event == "start"]

    def alive(self) -> list[int]:
        """Return those that run still."""
        return [pid for pid in self.workers() if psutil.pid_exists(pid)]


def spec_of(path: Path, source: str = "folder") -> ModelSpec:
    """Register a file."""
    return ModelSpec(ModelKey(path.stem, "1"), ModelFormat.PT, source, str(path))


async def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    """Wait for what another process brings about."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - it is another process's state
            await asyncio.sleep(0.01)
