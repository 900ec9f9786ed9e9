"""The faults: what each does, how long its load lasts, and when it is over."""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.faults.nodes import (
    DETECTORS,
    App,
    Json,
    Nodes,
    controller_pid,
    has_ended,
    ingress_pids,
    kill,
    stop,
    wait_until,
)
from benchmarks.faults.trigger import trigger
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
_KILL_LIMIT_S = 10.0
_PATIENCE_S = 65.0
"""Of a client: longer than the application takes to say that it is too late."""
_PROBE_S = 0.5

Over = Callable[[], bool]


@dataclass(slots=True)
class Stage:
    """All that a fault may touch.

    probed: (seconds since the start, status) of requests for models that cannot be loaded meanwhile
    burst: statuses of the requests amid which the fault was made
    struck_at: when it was made, on the clock of `time.monotonic`; 0 before
    """

    nodes: Nodes
    app: App
    watch: Watch
    names: tuple[str, ...]
    image: bytes
    probed: list[tuple[float, int]] = field(default_factory=list)
    burst: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    struck_at: float = 0.0
    _asking: list[threading.Thread] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where the application answers."""
        return f"http://127.0.0.1:{self.app.port}"

    @property
    def now_s(self) -> float:
        """Seconds since the start of the watch."""
        return time.monotonic() - self.watch.start

    def strike_amid_burst(self, models: tuple[str, ...], strike: Callable[[], None]) -> None:
        """Strike while many requests for `models` have been sent and not answered."""

        def ask(number: int) -> None:
            name = models[number % len(models)]
            with httpx.Client(base_url=self.url, timeout=_PATIENCE_S) as client:
                self.burst.append(_ask(client, name, self))

        self._asking += [threading.Thread(target=ask, args=(number,)) for number in range(BURST)]
        for thread in self._asking:
            thread.start()
        time.sleep(_BURST_LEAD_S)
        self.struck_at = time.monotonic()
        strike()

    def end_burst(self) -> None:
        """Wait until every request of the burst was answered."""
        for thread in self._asking:
            thread.join()


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault; `strike` returns what tells that all is as before.

    load_s: how long the steady load lasts, the time before the strike included
    spares_under_way: whether even requests that were under way have to be answered
    app: fields of App that the fault needs otherwise
    """

    what: str
    load_s: float
    strike: Callable[[Stage], Over]
    spares_under_way: bool = True
    app: Json = field(default_factory=dict)


def kill_replica(stage: Stage) -> Over:
    """SIGKILL the detector that holds most, amid a burst of requests for what it holds."""
    victim = _fullest(stage)
    stage.strike_amid_burst(victim.resident, lambda: kill(victim.pid))
    return lambda: _all_but({victim.pid}, stage)


def kill_node(stage: Stage) -> Over:
    """Kill everything on the node of the detector that holds most; a new node comes later."""
    victim = _fullest(stage)
    stage.strike_amid_burst(victim.resident, lambda: stage.nodes.kill(victim.pid))
    due_s = [stage.now_s + NEW_NODE_S]

    def over() -> bool:
        if due_s and stage.now_s >= due_s[0]:
            due_s.clear()
            stage.nodes.add()  # here, since Ray starts nodes in the main thread only
        return not due_s and _all_but({victim.pid}, stage)

    return over


def hang_replica(stage: Stage) -> Over:
    """Stop the detector that holds most (SIGSTOP): it is silent, and its connections stay open."""
    victim = _fullest(stage)
    stage.strike_amid_burst(victim.resident, lambda: stop(victim.pid))
    return lambda: _all_but({victim.pid}, stage)


def stick_engine(stage: Stage) -> Over:
    """Make the passes of the detector that holds most hang from now on."""
    victim = _fullest(stage)
    hangs = trigger(stage.app.cache_dir, victim.pid)
    stage.strike_amid_burst(victim.resident, hangs.touch)

    def over() -> bool:
        if not _all_but({victim.pid}, stage):
            return False
        hangs.unlink(missing_ok=True)
        return True

    return over


def kill_ingress(stage: Stage) -> Over:
    """SIGKILL one of the two ingress replicas, amid a burst of requests to both."""
    before = ingress_pids()
    victim = min(before)

    def strike() -> None:
        kill(victim)
        # Until its sockets are closed, which takes a moment, it seems to take requests.
        wait_until(lambda: has_ended(victim), _KILL_LIMIT_S, "the end of a process", 0.001)
        stage.struck_at = time.monotonic()

    stage.strike_amid_burst(stage.names[:LOADED], strike)

    def over() -> bool:
        now = ingress_pids()
        return len(now) == len(before) and victim not in now and stage.nodes.runs()

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
    with httpx.Client(base_url=stage.url, timeout=_PATIENCE_S) as client:
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


def _fullest(stage: Stage) -> Held:
    return max(stage.watch.last.replicas, key=lambda held: len(held.resident))


def _all_but(lost: set[int], stage: Stage) -> bool:
    pids = stage.watch.last.pids
    return len(pids) == DETECTORS and not pids & lost


FAULTS: Mapping[str, Fault] = {
    "replica": Fault("a detector is killed (SIGKILL)", 60.0, kill_replica),
    "node": Fault("a node is killed with all its processes", 60.0, kill_node),
    "hung": Fault("a detector stops answering (SIGSTOP)", 90.0, hang_replica),
    "stuck": Fault(
        "a detector's forward pass never ends",
        90.0,
        stick_engine,
        app={"import_path": "benchmarks.faults.stuck:build"},
    ),
    "ingress": Fault(
        "one of two ingress replicas is killed (SIGKILL)",
        60.0,
        kill_ingress,
        spares_under_way=False,
        app={"ingresses": 2},
    ),
    "controller": Fault("Serve's controller is killed (SIGKILL)", 60.0, kill_controller),
    "rollout": Fault("a new version is rolled out", 85.0, roll_out),
    "folder": Fault("the model folder is gone for 20 s", 60.0, lose_folder),
}
