"""What was measured on: without it no figure means anything."""

import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = (
    "ray",
    "torch",
    "ultralytics",
    "fastapi",
    "uvicorn",
    "numpy",
    "opencv-python",
    "simplejpeg",
    "openvino",
    "onnxruntime",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Machine, versions and time of a run.

    load: the machine's load average over a minute before the run began
    """

    date: str
    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory_bytes: int
    kernel: str
    versions: dict[str, str]
    load: float

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def describe() -> Machine:
    """Return the machine that this runs on, now."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=cpu_name(cpuinfo),
        cores=len(os.sched_getaffinity(0)),
        flags=cpu_flags(cpuinfo),
        memory_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
        versions={"python": platform.python_version(), **_versions()},
        load=os.getloadavg()[0],
    )


def cpu_name(cpuinfo: str) -> str:
    """Return the processor's name, with family and model where it names none in particular."""
    fields = _fields(cpuinfo)
    name = fields.get("model name", platform.machine())
    numbers = (fields.get("cpu family", "?"), fields.get("model", "?"))
    return f"{name} (family {numbers[0]}, model {numbers[1]})"


def cpu_flags(cpuinfo: str) -> tuple[str, ...]:
    """Return those of its instruction sets that matter here."""
    present = set(_fields(cpuinfo).get("flags", "").split())
    return tuple(flag for flag in _FLAGS if flag in present)


def _fields(cpuinfo: str) -> dict[str, str]:
    first = cpuinfo.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
