"""Which device to use, and how much memory it has."""

import math
import os
from pathlib import Path

import psutil
import torch

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def resolve_device(name: str) -> str:
    """Return "cpu" or "cuda:n" for "auto", "cpu", "cuda" or "cuda:n".

    Raises:
        ValueError: the name is none of these, or there is no such device
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise ValueError(f"device {name!r} is unknown: expected auto, cpu, cuda or cuda:n")
    number = int(index or "0")
    if number >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not here: found {torch.cuda.device_count()} of CUDA")
    return f"cuda:{number}"


def device_total_bytes(device: str) -> int:
    """Return the memory that this process may use on the device, in bytes."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [limit for path in _CGROUP_LIMITS if (limit := read_limit(path)) is not None]
    return min([int(psutil.virtual_memory().total), *limits])


def read_limit(path: Path) -> int | None:
    """Return the bytes that a control group's file allows, None for no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def usable_cores(quota: Path = _CPU_QUOTA) -> int:
    """Return the cores that this process may use, a container's share rounded up."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        cores = min(cores, math.ceil(int(allowed) / int(period)))
    except (OSError, ValueError):  # no control group, or "max"
        pass
    return max(1, cores)
