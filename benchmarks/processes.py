"""What /proc says of processes: memory, descendants, time on the cores."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.repeat import Repeater

_FIELDS = {"Rss:": "rss", "Pss:": "pss", "Private_Clean:": "clean", "Private_Dirty:": "dirty"}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process, or summed over several.

    rss: all its resident pages; pss: shared pages divided among their holders; uss: its own alone
    """

    rss: int = 0
    pss: int = 0
    uss: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.rss + other.rss, self.pss + other.pss, self.uss + other.uss)

    def __sub__(self, other: "Memory") -> "Memory":
        return Memory(self.rss - other.rss, self.pss - other.pss, self.uss - other.uss)


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory at a time, seconds since the sampler began."""

    at_s: float
    memory: Memory


def parse_rollup(text: str) -> Memory:
    """Return the memory that a smaps_rollup file tells of."""
    found = dict.fromkeys(_FIELDS.values(), 0)
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name in _FIELDS:
            found[_FIELDS[name]] = int(rest.split()[0]) * 1024
    return Memory(found["rss"], found["pss"], found["clean"] + found["dirty"])


def memory_of(pid: int) -> Memory:
    """Return a process's memory; zero once it has ended."""
    try:
        return parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except (OSError, ProcessLookupError):
        return Memory()


def family(pid: int) -> list[psutil.Process]:
    """Return a process, its descendants and all that is left of its session."""
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        found = {process.pid: process for process in (root, *root.children(recursive=True))}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, psutil.NoSuchProcess):
            fields = stat.read_text().rpartition(")")[2].split()
            member = int(stat.parent.name)
            if int(fields[3]) == pid and fields[0] != "Z":
                found.setdefault(member, psutil.Process(member))
    return list(found.values())


def sum_memory(processes: Iterable[psutil.Process]) -> Memory:
    """Return the memory of several processes together; of it, `pss` counts nothing twice."""
    total = Memory()
    for process in processes:
        total += memory_of(process.pid)
    return total


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the time that processes have spent on the cores so far."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def wait_until_idle(
    pid: int, *, share: float = 0.3, window_s: float = 1.0, limit_s: float = 180.0
) -> float:
    """Wait until a server takes less than `share` of a core twice; return the seconds waited.

    What a server prepares in the background belongs to its start and not to its requests. An idle
    Ray takes a tenth of a core or two.
    """
    start = time.monotonic()
    idle = 0
    while idle < 2 and time.monotonic() - start < limit_s:
        before = cpu_seconds(family(pid))
        time.sleep(window_s)
        busy = (cpu_seconds(family(pid)) - before) / window_s
        idle = idle + 1 if busy < share else 0
    return time.monotonic() - start


class Sampler(Repeater):
    """Reads one process's memory again and again, in a thread, while a `with` block runs."""

    def __init__(self, pid: int, interval_s: float = 1.0) -> None:
        """Sample process `pid` every `interval_s`."""
        super().__init__("memory-sampler", interval_s)
        self._pid = pid
        self.samples: list[Sample] = []

    def once(self) -> None:
        """Take a sample."""
        self.samples.append(Sample(self.elapsed_s, memory_of(self._pid)))
