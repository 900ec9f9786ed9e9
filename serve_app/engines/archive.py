"""Looks into a `.pt` file without running it: its zip directory and the names in its pickle.

Everything here reads; nothing is unpickled, so any bytes may be handed in.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.engines.guard import is_blameless
from serve_app.engines.pickles import imported_names
from serve_app.engines.text import printable
from serve_app.errors import ModelBrokenError

_MAX_PICKLE_BYTES = 4 * 2**20  # the largest networks with their optimizers take one
_MAX_ENTRIES = 100_000
_HEAD_BYTES = 512
_RESAVE = "save it again with a current Ultralytics: `YOLO('old.pt').save('new.pt')`"


def check_archive(path: Path) -> None:
    """Check the zip directory of a checkpoint.

    Raises:
        ModelBrokenError: the file is no well-formed archive of `torch.save`; the detail says what
        OSError: the disk or the system refuses, which says nothing of the file
    """
    with _opened(path) as archive:
        _find_pickle(archive, path.stat().st_size)


def read_globals(path: Path) -> frozenset[str]:
    """Return the dotted names that the checkpoint's pickle would import.

    Raises:
        ModelBrokenError: the file is no well-formed archive of `torch.save`
        OSError: the disk or the system refuses, which says nothing of the file
    """
    with _opened(path) as archive:
        entry = _find_pickle(archive, path.stat().st_size)
        return frozenset(imported_names(archive.read(entry)))


def check_records(path: Path) -> None:
    """Compare each record with its checksum, which PyTorch does not: weights may have rotted.

    Raises:
        ModelBrokenError: a record is damaged
        OSError: the disk or the system refuses, which says nothing of the file
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OSError) as error:
        if is_blameless(error):
            raise
        damaged = "the archive"
    if damaged is not None:
        raise ModelBrokenError("the checkpoint is corrupt: a checksum is wrong; copy it again")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive; whatever damage zipfile and pickletools meet becomes a plain reason."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except zipfile.BadZipFile:
        raise ModelBrokenError(_why_not_zip(path)) from None
    except (NotImplementedError, RuntimeError, ValueError, EOFError, zipfile.LargeZipFile):
        raise ModelBrokenError(
            "the checkpoint is corrupt: its contents cannot be read; copy or export it again"
        ) from None
    except OSError as error:  # damaged offsets lead to some, too
        if is_blameless(error):
            raise
        raise ModelBrokenError(f"the checkpoint cannot be read: {error.strerror}") from None


def _find_pickle(archive: zipfile.ZipFile, file_bytes: int) -> zipfile.ZipInfo:
    entries = archive.infolist()
    names = {entry.filename.split("/", 1)[-1] for entry in entries}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise ModelBrokenError(
            "the file is a TorchScript archive, not a checkpoint; register the .pt it was made of, "
            "or its ONNX export"
        )
    _check_entries(entries, file_bytes)
    pickles = [entry for entry in entries if entry.filename.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise ModelBrokenError("the file is a zip archive, but no PyTorch checkpoint")
    if pickles[0].file_size > _MAX_PICKLE_BYTES:
        raise ModelBrokenError(
            f"the checkpoint's structure takes {pickles[0].file_size} bytes, "
            f"more than the {_MAX_PICKLE_BYTES} of any YOLO model"
        )
    return pickles[0]


def _check_entries(entries: list[zipfile.ZipInfo], file_bytes: int) -> None:
    """Refuse archives that unpack to more than they are: torch.save never compresses."""
    if len(entries) > _MAX_ENTRIES:
        raise ModelBrokenError(f"the checkpoint holds {len(entries)} records, which no model does")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelBrokenError(
            f"the checkpoint holds compressed records, which PyTorch never writes; {_RESAVE}"
        )
    if sum(entry.file_size for entry in entries) > file_bytes:
        raise ModelBrokenError("the checkpoint declares more data than the file holds: corrupt")


def _why_not_zip(path: Path) -> str:
    """Return the plain reason why this file is no checkpoint."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        legacy = head + file.read(_MAX_PICKLE_BYTES) if head[:1] == b"\x80" else b""
    if not head:
        return "the file is empty; copy it again"
    if head.lstrip()[:1] == b"<":
        return "the file is a web page, not a checkpoint: its download went wrong"
    if head.startswith(b"version https://git-lfs"):
        return "the file is a Git LFS pointer, not a checkpoint: run `git lfs pull`"
    if head.startswith(b"PK"):
        return "the checkpoint is truncated or corrupt; copy it again"
    if legacy:
        return _why_not_legacy(legacy)
    return "the file is no PyTorch checkpoint; register a .pt that Ultralytics saved"


def _why_not_legacy(data: bytes) -> str:
    """Say why a bare pickle is refused, naming what it would import."""
    names: set[str] = set()
    try:
        while data[:1] == b"\x80":
            names.update(imported_names(data))
            data = data[_pickle_length(data) :]
    except (ValueError, IndexError, UnicodeDecodeError):
        pass  # what follows the pickles of such a file is raw tensor data
    foreign = sorted(name for name in names if not name.startswith(("torch.", "collections.")))
    naming = f" naming {', '.join(map(printable, foreign[:5]))}" if foreign else ""
    return f"the file is a bare pickle{naming}, which could run code and is never opened; {_RESAVE}"


def _pickle_length(data: bytes) -> int:
    position = 0
    for _, _, at in pickletools.genops(data):
        position = at if at is not None else position
    return position + 1
