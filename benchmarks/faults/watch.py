"""Asks the application what its replicas hold, again and again, while something breaks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.repeat import Repeater

INTERVAL_S = 0.25
_TIMEOUT_S = 6.0


@dataclass(frozen=True, slots=True)
class Held:
    """What one replica said of itself."""

    pid: int
    used_bytes: int
    budget_bytes: int
    resident: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """One answer of /v1/replicas, `at_s` after the start; `status` 0 is none at all."""

    at_s: float
    status: int
    replicas: tuple[Held, ...] = ()

    @property
    def pids(self) -> frozenset[int]:
        """The processes that answered."""
        return frozenset(held.pid for held in self.replicas)


def read_replicas(answer: dict[str, Any]) -> tuple[Held, ...]:
    """Return what an answer of /v1/replicas says."""
    return tuple(
        Held(
            pid=replica["pid"],
            used_bytes=replica["used_bytes"],
            budget_bytes=replica["budget_bytes"],
            resident=tuple(m["key"] for m in replica["models"] if m["state"] == "resident"),
        )
        for replica in answer["replicas"]
    )


class Watch(Repeater):
    """Looks every quarter of a second, in a thread, while a `with` block runs."""

    def __init__(self, port: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask the application at `port`."""
        super().__init__("watch", INTERVAL_S, clock)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_TIMEOUT_S)
        self.looks: list[Look] = []

    @property
    def last(self) -> Look:
        """The last look that was answered; an empty one before there is any."""
        answered = (look for look in reversed(self.looks) if look.status == 200)
        return next(answered, Look(0.0, 0))

    def once(self) -> None:
        """Look."""
        self.looks.append(self.look())

    def look(self) -> Look:
        """Ask once, now."""
        at_s = self.elapsed_s
        try:
            answer = self._client.get("/v1/replicas")
        except httpx.HTTPError:
            return Look(at_s, 0)
        if answer.status_code != 200:
            return Look(at_s, answer.status_code)
        return Look(at_s, 200, read_replicas(answer.json()))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
