"""The process that prepares weights, so that the one that serves does not have to.

`python -m serve_app.loading.prepare_worker` reads and writes JSON, one object a line:

    ->                                          <- {"ready": true}
    -> {"path": "models/parts/1/model.pt"}      <- {"made": true}
    -> {"path": "models/broken/1/model.pt"}     <- {"code": "model_broken", "detail": "..."}

It takes what the machine has to spare, and ends with its stdin or with its parent. Started by
prepare_process.py.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import psutil

from serve_app.errors import ServeAppError
from serve_app.types import ModelFormat

if TYPE_CHECKING:
    from serve_app.engines.factory import CpuEngine
    from serve_app.engines.precision import Precision

_PARENT_POLL_S = 1.0
_FIRST_TO_BE_KILLED = "1000"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How the engines are made that prepare, as in the replica, and the limits.

    cpu_limit_s: processor time for one file; wall time says little of a process that steps back
    """

    device: str
    precision: "Precision"
    cpu_engine: "CpuEngine"
    folder: Path
    limit_bytes: int
    cpu_limit_s: float = 120.0

    def command(self) -> list[str]:
        """Return the command line that starts a worker with these settings."""
        options = {
            "--device": self.device,
            "--precision": self.precision,
            "--cpu-engine": self.cpu_engine,
            "--folder": str(self.folder.absolute()),
            "--limit-bytes": str(self.limit_bytes),
            "--cpu-limit-s": str(self.cpu_limit_s),
        }
        words = [word for option in options.items() for word in option]
        return [sys.executable, "-P", "-m", __name__, *words]

    @classmethod
    def parse(cls, words: Sequence[str]) -> "WorkerSettings":
        """Return the settings in the words after the module's name."""
        parser = argparse.ArgumentParser(prog="prepare_worker")
        parser.add_argument("--device", required=True)
        parser.add_argument("--precision", required=True)
        parser.add_argument("--cpu-engine", required=True)
        parser.add_argument("--folder", type=Path, required=True)
        parser.add_argument("--limit-bytes", type=int, required=True)
        parser.add_argument("--cpu-limit-s", type=float, required=True)
        return cls(**vars(parser.parse_args(words)))


def serve(
    requests: Iterable[str],
    answers: TextIO,
    prepare: Callable[[Path], bool],
    *,
    cpu_limit_s: float,
) -> None:
    """Answer each request in turn; a file over the time limit ends the process by SIGPROF."""
    _say(answers, {"ready": True})
    for line in requests:
        path = Path(json.loads(line)["path"])
        # The default action of the signal: it ends the process even within a library's loop.
        signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
        outcome = _outcome(prepare, path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answers, outcome)


def _outcome(prepare: Callable[[Path], bool], path: Path) -> dict[str, Any]:
    try:
        return {"made": prepare(path)}
    except ServeAppError as error:
        return {"code": error.code, "detail": error.detail}
    except Exception as error:
        logging.getLogger(__name__).warning("%s cannot be prepared", path, exc_info=error)
        return {"code": "unexpected", "detail": f"{type(error).__name__}: {error}"}


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _make_prepare(settings: WorkerSettings) -> Callable[[Path], bool]:
    # Not before stdout is safe and the process has stepped back: importing these takes seconds.
    from serve_app.engines.factory import create_engines
    from serve_app.engines.guard import guarded
    from serve_app.engines.store import ArtifactStore

    store = ArtifactStore(settings.folder, settings.limit_bytes)
    engines = create_engines(
        settings.device,
        threads=1,
        streams=1,
        precision=settings.precision,
        cpu_engine=settings.cpu_engine,
        store=store,
    )

    def prepare(path: Path) -> bool:
        return guarded(engines[ModelFormat(path.suffix.removeprefix("."))].prepare, path)

    return prepare


def _take_stdout() -> TextIO:
    """Return the real stdout; what anything else prints goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _step_back() -> None:
    """Leave processor, disk and memory to whoever else wants them."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    os.nice(19)
    # Ray lowers its own processes to 15, and 19 beside that would still be a third of a core.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError, psutil.Error):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_BE_KILLED)


def _leave_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)  # nobody waits for what is in hand; the store removes what is unfinished


def main() -> None:
    """Serve until stdin ends."""
    answers = _take_stdout()
    _step_back()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the parent, which decides
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("serve_app").setLevel(logging.INFO)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    settings = WorkerSettings.parse(sys.argv[1:])
    with suppress(BrokenPipeError):
        serve(sys.stdin, answers, _make_prepare(settings), cpu_limit_s=settings.cpu_limit_s)


if __name__ == "__main__":
    main()
