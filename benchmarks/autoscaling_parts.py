"""What the autoscaling benchmark plans, asks and finds."""

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "demo/samples/codes-1.jpg"
_POLL_S = 0.5
_POLLS = 60


@dataclass(frozen=True, slots=True)
class Plan:
    """A repository of copies of one model, and how many a replica's budget holds."""

    models: int = 13
    room: float = 6.5
    max_replicas: int = 4
    clients: int = 1
    window_s: float = 10.0
    measure_s: float = 15.0
    settle_s: float = 5.0
    down_s: float = 5.0
    spare_s: float | None = None
    timeout_s: float = 90.0
    hot: int = 3
    ingress_target: int = 6
    ingress_clients: int = 14


@dataclass(frozen=True, slots=True)
class Misses:
    """Answered requests of a while, those that had to wait for their model's load, and failures."""

    requests: int
    cold: int
    failed: int

    def __add__(self, other: "Misses") -> "Misses":
        """Return both together."""
        return Misses(
            self.requests + other.requests, self.cold + other.cold, self.failed + other.failed
        )

    @property
    def per_100(self) -> float:
        """Misses per 100 requests."""
        return 100 * self.cold / max(1, self.requests)


@dataclass(slots=True)
class Outcome:
    """What a run showed; times in seconds."""

    steps: list[tuple[str, float]] = field(default_factory=list)
    before: Misses = Misses(0, 0, 0)
    after: Misses = Misses(0, 0, 0)
    shrinking: Misses = Misses(0, 0, 0)
    pinned: Misses = Misses(0, 0, 0)
    many: Misses = Misses(0, 0, 0)
    replicas: int = 0
    workers: int = 0


def name_of(number: int) -> str:
    """Return the name of a model."""
    return f"m{number:02}"


class Traffic:
    """A closed loop: each client asks for some model, waits for the answer, asks for another."""

    def __init__(self, url: str, models: int, clients: int, *, first: int = 0) -> None:
        """Ask with `clients` threads, each of `models` from `first` on as often as any other."""
        self._url = url
        self._models = range(first, first + models)
        self._ended = threading.Event()
        self._answers: list[tuple[float, bool, int]] = []  # when, cold, status
        self._threads = [
            threading.Thread(target=self._run, args=(seed,), daemon=True) for seed in range(clients)
        ]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def misses(self, since: float, until: float) -> Misses:
        """Count what was answered between two times of time.monotonic()."""
        found = [answer for answer in list(self._answers) if since <= answer[0] < until]
        good = [cold for _, cold, status in found if status == 200]
        return Misses(len(good), sum(good), len(found) - len(good))

    @property
    def all_misses(self) -> Misses:
        """Count everything."""
        return self.misses(0.0, math.inf)

    def lately(self, seconds: float) -> Misses:
        """Count the last seconds."""
        now = time.monotonic()
        return self.misses(now - seconds, now)

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - no secret
        with httpx.Client(base_url=self._url, timeout=90.0) as client:
            while not self._ended.is_set():
                cold, status = ask(client, name_of(chance.choice(self._models)))
                self._answers.append((time.monotonic(), cold, status))


def ask(client: httpx.Client, model: str) -> tuple[bool, int]:
    """Send one picture; return whether its model had to be loaded, and the status, 0 for none."""
    try:
        answer = client.post(
            f"/v1/models/{model}/predict",
            content=PICTURE.read_bytes(),
            headers={"content-type": "image/jpeg"},
        )
    except httpx.HTTPError:
        return False, 0
    return answer.headers.get("x-model-cold-start") == "true", answer.status_code


def count_replicas(client: httpx.Client) -> int | None:
    """Return how many detectors answer, None where the ingress cannot tell: 503, 504, silence."""
    try:
        answer = client.get("/v1/replicas")
    except httpx.HTTPError:
        return None
    return len(answer.json()["replicas"]) if answer.status_code == 200 else None


def agreed(count: Callable[[], int | None], wait: Callable[[float], None] = time.sleep) -> int:
    """Return what two counts in a row, half a second apart, agree on; None agrees with nothing.

    One count is not enough: a replica that takes a new configuration is left out of it.

    Raises:
        TimeoutError: no two of 60 did
    """
    last = None
    for _ in range(_POLLS):
        found = count()
        if found is not None and found == last:
            return found
        last = found
        wait(_POLL_S)
    raise TimeoutError(f"no two in a row of {_POLLS} counts of the replicas agree: last {last}")
