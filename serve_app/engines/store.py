"""Keeps prepared weights in one folder, shared by the processes of a node.

The folder is all there is: no index and no daemon. A file appears under its name by one atomic
rename, so whoever finds it finds it whole as it was written; whether that is what was meant, its
reader checks. A file's modification time says when it was last used. Files may vanish at any time,
for another process may need their room; who has one open reads on.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]*{re.escape(SUFFIX)}")
_UNFINISHED = re.compile(r"\.unfinished-(?P<realm>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{16}")
_UNFINISHED_AGE_S = 3600.0
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True, slots=True, order=True)
class _Stored:
    used_ns: int
    name: str
    nbytes: int


class ArtifactStore:
    """Files by name, at most `limit_bytes` together, the least recently used making room.

    Any thread, any process. A folder that cannot be written is only read; one that is missing is
    as good as empty.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Keep files in `folder`, made on first need; a limit of 0 keeps and finds nothing."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._warned = False

    def find(self, name: str) -> Path | None:
        """Return the file and mark it as used; None when there is none.

        It may be gone, or be another, by the time it is opened.
        """
        path = self._path(name)
        if self.limit_bytes <= 0:
            return None
        try:
            os.utime(path)
        except OSError as error:
            return path if error.errno in _READ_ONLY and path.is_file() else None
        return path

    def put(self, name: str, write: Callable[[Path], None]) -> Path | None:
        """Keep what `write` writes to the path that it is given, and make room for it.

        What `write` raises is raised, except OSError: the disk is full or cannot be written, which
        is logged once.

        Returns:
            the file, or None when it is not kept
        """
        path = self._path(name)
        if self.limit_bytes <= 0:
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            if not self._write(path, write):
                return None
        except OSError as error:
            self._warn(f"{name} cannot be kept", error)
            return None
        self._warned = False
        self._make_room(keep=name)
        return path

    def discard(self, name: str) -> None:
        """Remove a file that was found to be of no use; it may be gone already."""
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            self._warn(f"{name} cannot be removed", error)

    def tidy(self) -> None:
        """Remove what killed processes left, and what is over a limit that was lowered."""
        self._sweep()
        self._make_room()

    @property
    def used_bytes(self) -> int:
        """Bytes of the files that are kept now, by this process or others."""
        try:
            return sum(stored.nbytes for stored in self._scan())
        except OSError:
            return 0

    def room_bytes(self) -> int:
        """Return how much more could be kept now without removing anything."""
        return max(0, self.limit_bytes - self.used_bytes)

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} cannot be kept: expected a file name ending in {SUFFIX}")
        return self.folder / name

    def _write(self, path: Path, write: Callable[[Path], None]) -> bool:
        """Put the file under its name in one step, unless it alone is over the limit."""
        with self._unfinished() as folder:
            partial = folder / path.name
            write(partial)
            nbytes = _sync(partial)
            if nbytes > self.limit_bytes:
                logger.info(
                    "%s is not kept: its %d bytes are more than the limit of %d",
                    path.name,
                    nbytes,
                    self.limit_bytes,
                )
                return False
            os.replace(partial, path)
        return True

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A folder of this process's own: what writes a file may make other files beside it."""
        folder = self.folder / f".unfinished-{_realm()}-{os.getpid()}-{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what processes left that were killed while they wrote."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                owner = _UNFINISHED.fullmatch(entry.name)
                if owner is not None and _is_abandoned(entry, owner["realm"], int(owner["pid"])):
                    shutil.rmtree(entry.path, ignore_errors=True)

    def _make_room(self, keep: str | None = None) -> None:
        """Remove the least recently used until the limit is kept; never `keep`."""
        try:
            with _one_at_a_time(self.folder):
                for file in _superfluous(self._scan(), self.limit_bytes, keep):
                    (self.folder / file.name).unlink(missing_ok=True)
        except FileNotFoundError:  # no folder, no files
            return
        except OSError as error:
            self._warn("files over the limit cannot be removed", error)

    def _scan(self) -> list[_Stored]:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) is not None:
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            found.append(_Stored(status.st_mtime_ns, entry.name, status.st_size))
        return found

    def _warn(self, what: str, error: OSError) -> None:
        """Say it once until something could be kept again: every model would say the same."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        advice = "models are served all the same, but open more slowly; check the disk"
        logger.log(level, "%s in %s: %s; %s", what, self.folder, error.strerror or error, advice)


def _superfluous(stored: list[_Stored], limit_bytes: int, keep: str | None) -> Iterator[_Stored]:
    """Choose what must go so that the rest keeps to the limit."""
    excess = sum(file.nbytes for file in stored) - limit_bytes
    for file in sorted(stored):
        if excess <= 0:
            return
        if file.name != keep:
            excess -= file.nbytes
            yield file


def _sync(path: Path) -> int:
    """Bring the file to the disk and return its size in bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time make room: two at once would each remove what the other kept."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems have no locks; then it is a rare loss
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # gives the lock back


def _is_abandoned(entry: os.DirEntry[str], realm: str, pid: int) -> bool:
    try:
        age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
    except OSError:  # its owner has just removed it
        return False
    if age_s > _UNFINISHED_AGE_S:
        return True
    return realm == _realm() and not psutil.pid_exists(pid)


def _realm() -> str:
    """Return what tells the processes whose ids can be compared with this one's from others.

    Containers and machines that share a folder each count their processes from 1.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        words = boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        words = socket.gethostname()
    return hashlib.sha256(words.encode()).hexdigest()[:12]
