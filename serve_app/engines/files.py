"""Remembers which files were found sound, so that a known model is not read twice."""

from collections.abc import Callable
from pathlib import Path

from serve_app.errors import SourceUnavailableError
from serve_app.types import Footprint

_CAPACITY = 4096

FileIdentity = tuple[str, int, int, int]
"""Path, size, modification time and inode: a file that was changed in any way is another."""


class VerifiedFiles:
    """Footprints by file."""

    def __init__(self) -> None:
        self._footprints: dict[FileIdentity, Footprint] = {}

    def get(self, path: Path, inspect: Callable[[Path], Footprint]) -> Footprint:
        """Return what `inspect(path)` found, now or before."""
        identity = identify(path)
        footprint = self._footprints.get(identity)
        if footprint is None:
            footprint = inspect(path)
            if len(self._footprints) >= _CAPACITY:
                self._footprints.clear()
            self._footprints[identity] = footprint
        return footprint


def identify(path: Path) -> FileIdentity:
    """Return what tells this file from all others on this machine.

    Raises:
        SourceUnavailableError: there is no such file any more
    """
    try:
        status = path.stat()
    except OSError as error:
        raise SourceUnavailableError(f"the model's file is gone: {error.strerror}") from None
    return str(path), status.st_size, status.st_mtime_ns, status.st_ino
