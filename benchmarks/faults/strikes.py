"""The faults: what each does, how long its load lasts, and when it is over."""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.faults.nodes import DETECTORS, App, Nodes, controller_pid, kill
from benchmarks.faults.watch import Held, Watch

RATE = 20.0
"""Requests per second of the steady load."""
LOADED = 12
"""Models that the steady load asks for."""
UNLOADED = 2
"""Further models, in no replica's memory when the folder goes."""
NEW_NODE_S = 10.0
"""After which a node is replaced, as an autoscaler would."""
FOLDER_GONE_S = 20.0
BURST = 16
"""Requests that are under way to a detector as it dies."""
_BURST_LEAD_S = 0.06
_PROBE_S = 0.5

Over = Callable[[], bool]


@dataclass(slots=True)
class Stage:
    """All that a fault may touch.

    probed: (seconds since the start, status) of requests for models that cannot be loaded meanwhile
    burst: statuses of the requests amid which the fault was made
    """

    nodes: Nodes
    app: App
    watch: Watch
    names: tuple[str, ...]
    image: bytes
    probed: list[tuple[float, int]] = field(default_factory=list)
    burst: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where the application answers."""
        return f"http://127.0.0.1:{self.app.port}"

    @property
    def now_s(self) -> float:
        """Seconds since the start of the watch."""
        return time.monotonic() - self.watch.start


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault; `strike` returns what tells that all is as before.

    load_s: how long the steady load lasts, the time before the strike included
    """

    what: str
    load_s: float
    strike: Callable[[Stage], Over]


def kill_replica(stage: Stage) -> Over:
    """SIGKILL the detector that holds most, amid a burst of requests for what it holds."""
    victim = _fullest(stage)
    _amid_burst(stage, victim, lambda: kill(victim.pid))
    return lambda: _all_but({victim.pid}, stage)


def kill_node(stage: Stage) -> Over:
    """Kill everything on the node of the detector that holds most; a new node comes later."""
    victim = _fullest(stage)
    _amid_burst(stage, victim, lambda: stage.nodes.kill(victim.pid))
    due_s = [stage.now_s + NEW_NODE_S]

    def over() -> bool:
        if due_s and stage.now_s >= due_s[0]:
            due_s.clear()
            stage.nodes.add()  # here, since Ray starts nodes in the main thread only
        return not due_s and _all_but({victim.pid}, stage)

    return over


def kill_controller(stage: Stage) -> Over:
    """SIGKILL Serve's controller, which Ray starts anew."""
    old = controller_pid()
    if old is None:
        raise RuntimeError("Serve has no controller")
    kill(old)
    return lambda: controller_pid() not in (None, old) and stage.nodes.runs()


def roll_out(stage: Stage) -> Over:
    """Deploy with another argument: every replica of both deployments is replaced."""
    old = set(stage.watch.last.pids)
    stage.nodes.deploy(stage.app.config(request_timeout_s=59))
    return lambda: _all_but(old, stage) and stage.nodes.runs()


def lose_folder(stage: Stage) -> Over:
    """Move the model folder away, ask for models that are in no memory, and move it back."""
    folder = stage.app.repository
    away = folder.with_name(folder.name + "-away")
    shutil.rmtree(away, ignore_errors=True)  # of a run that was cut off
    folder.rename(away)
    prober = threading.Thread(target=_probe, args=(stage, folder, away), daemon=True)
    prober.start()
    return lambda: not prober.is_alive()


def _probe(stage: Stage, folder: Path, away: Path) -> None:
    """Ask until the folder is back and each model has answered."""
    waiting = list(stage.names[LOADED:])
    gone_s = back_s = stage.now_s
    turn = 0
    with httpx.Client(base_url=stage.url, timeout=60.0) as client:
        while waiting:
            if stage.now_s >= gone_s + FOLDER_GONE_S and away.exists():
                away.rename(folder)
                back_s = stage.now_s
            name = waiting[turn % len(waiting)]
            at_s = stage.now_s
            status = _ask(client, name, stage)
            stage.probed.append((at_s, status))
            if status == 200:
                waiting.remove(name)
            turn += 1
            time.sleep(_PROBE_S)
    stage.notes.append(f"the last of them answered {stage.now_s - back_s:.1f} s after its return")


def _ask(client: httpx.Client, name: str, stage: Stage) -> int:
    headers = {"content-type": "image/jpeg"}
    try:
        answer = client.post(f"/v1/models/{name}/predict", content=stage.image, headers=headers)
    except httpx.HTTPError:
        return 0
    if answer.status_code != 200:
        said = f"{answer.status_code} was {code_of(answer)}"
        if said not in stage.notes:
            stage.notes.append(said)
    return answer.status_code


def code_of(answer: httpx.Response) -> str:
    """Return the code of a problem document, the beginning of anything else."""
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:100]


def _amid_burst(stage: Stage, victim: Held, strike: Callable[[], None]) -> None:
    """Strike while many requests for the victim's models have been sent and not answered."""

    def ask(number: int) -> None:
        name = victim.resident[number % len(victim.resident)]
        with httpx.Client(base_url=stage.url, timeout=60.0) as client:
            stage.burst.append(_ask(client, name, stage))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(BURST)]
    for thread in threads:
        thread.start()
    time.sleep(_BURST_LEAD_S)
    strike()
    for thread in threads:
        thread.join()


def _fullest(stage: Stage) -> Held:
    return max(stage.watch.last.replicas, key=lambda held: len(held.resident))


def _all_but(lost: set[int], stage: Stage) -> bool:
    pids = stage.watch.last.pids
    return len(pids) == DETECTORS and not pids & lost


FAULTS: Mapping[str, Fault] = {
    "replica": Fault("a detector is killed (SIGKILL)", 60.0, kill_replica),
    "node": Fault("a node is killed with all its processes", 70.0, kill_node),
    "controller": Fault("Serve's controller is killed (SIGKILL)", 60.0, kill_controller),
    "rollout": Fault("a new version is rolled out", 110.0, roll_out),
    "folder": Fault("the model folder is gone for 20 s", 70.0, lose_folder),
}
