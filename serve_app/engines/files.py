"""Remembers which files were found sound, so that a known model is not read twice."""

from collections.abc import Callable
from pathlib import Path

from serve_app.errors import SourceUnavailableError
from serve_app.types import Footprint

_CAPACITY = 4096

_Identity = tuple[str, int, int, int]


class VerifiedFiles:
    """Footprints by file; a file that was changed in any way is another file."""

    def __init__(self) -> None:
        self._footprints: dict[_Identity, Footprint] = {}

    def get(self, path: Path, inspect: Callable[[Path], Footprint]) -> Footprint:
        """Return what `inspect(path)` found, now or before."""
        identity = _identify(path)
        footprint = self._footprints.get(identity)
        if footprint is None:
            footprint = inspect(path)
            if len(self._footprints) >= _CAPACITY:
                self._footprints.clear()
            self._footprints[identity] = footprint
        return footprint


def _identify(path: Path) -> _Identity:
    try:
        status = path.stat()
    except OSError as error:
        raise SourceUnavailableError(f"the model's file is gone: {error.strerror}") from None
    return str(path), status.st_size, status.st_mtime_ns, status.st_ino
