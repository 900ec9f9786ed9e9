"""How the fault `stuck` reaches into a detector's process."""

from pathlib import Path


def trigger(cache_dir: Path, pid: int) -> Path:
    """Return the file whose existence makes the passes of process `pid` hang."""
    return cache_dir / f"hang-{pid}"
