"""Remembers what was found out about files, so that a known one is not read twice."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from serve_app.errors import SourceUnavailableError

T = TypeVar("T")

_CAPACITY = 4096

FileIdentity = tuple[str, int, int, int]
"""Path, size, modification time and inode: a file that was changed in any way is another."""


class _Unknown:
    """Stands for no fact, where None may be one."""


_UNKNOWN = _Unknown()


class KnownFiles(Generic[T]):
    """One fact about each file. Any thread."""

    def __init__(self) -> None:
        self._facts: dict[FileIdentity, T] = {}

    def get(self, path: Path, inspect: Callable[[Path], T]) -> T:
        """Return what `inspect(path)` found, now or before."""
        identity = identify(path)
        known = self._facts.get(identity, _UNKNOWN)  # once: another thread may clear them
        if not isinstance(known, _Unknown):
            return known
        fact = inspect(path)
        if len(self._facts) >= _CAPACITY:
            self._facts.clear()
        self._facts[identity] = fact
        return fact


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


def content_hash(path: Path) -> str:
    """Return the SHA-256 of the file's bytes.

    Raises:
        SourceUnavailableError: it cannot be read
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceUnavailableError(f"the model's file cannot be read: {error.strerror}") from None
