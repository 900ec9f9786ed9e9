"""The model repository: `<root>/<name>/<version>/model.pt` or `model.onnx`, and `model.yaml`.

Where both files lie in one folder, `model.pt` is served. Whatever does not fit is left out: stray
files, dangling links, names that no reference can spell (hidden ones among them), and names that
end in `.tmp`, `.part` or `.partial`, so that an upload can be renamed into place when complete.
A link may lead anywhere: the repository belongs to the operator.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from serve_app.errors import InvalidParameterError
from serve_app.registry.cards import read_card
from serve_app.types import ModelCard, ModelFormat, ModelKey, ModelRef, ModelSpec

logger = logging.getLogger(__name__)

SOURCE = "folder"
CARD_FILE = "model.yaml"
_UNFINISHED = (".tmp", ".part", ".partial")
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""What the system says of a file that is not there; anything else may be over in a moment."""

_NO_CARD = ModelCard()
_Signature = tuple[int, int, int]


class _Known(NamedTuple):
    """A version as it was seen: what it was told by, and what it was found to be."""

    size_bytes: int
    card: _Signature | None
    spec: ModelSpec


class FolderScanner:
    """Finds the models below one folder.

    One scan at a time, the registry sees to that; `scan_name` may run beside it in other threads.
    What has not changed is the same object again, so that comparing 10,000 takes no time and
    leaves nothing for the garbage collector, which would stop all threads.
    """

    def __init__(self, root: Path, *, cards: bool = True) -> None:
        """Look below `root`; without `cards` none is read, which of 10,000 takes seconds."""
        self._root = Path(os.path.abspath(root))
        self._reads_cards = cards
        self._known: dict[str, _Known] = {}

    def __str__(self) -> str:
        return f"folder {self._root}"

    def scan(self) -> Iterator[ModelSpec]:
        """Yield the models that lie there now, one by one as they are found.

        What cannot be read is taken to be as it was.

        Raises:
            OSError: the root itself cannot be read, or was exchanged meanwhile
        """
        known: dict[str, _Known] = {}
        unread: set[str] = set()
        root = os.stat(self._root)
        for name, folder in _subfolders(str(self._root)):
            yield from self._versions(name, folder, known, unread)
        # A list that was begun goes on when the root is gone: all else would seem to be removed.
        if not os.path.samestat(root, os.stat(self._root)):
            raise OSError(errno.ESTALE, "exchanged during the scan", str(self._root))
        yield from self._kept(known, unread)
        self._known = known

    def scan_name(self, name: str) -> list[ModelSpec]:
        """Return the versions of one name that lie there now, however many other names there are.

        Raises:
            OSError: the root itself cannot be read
        """
        known: dict[str, _Known] = {}
        unread: set[str] = set()
        specs: list[ModelSpec] = []
        if _is_part(name):
            specs += self._versions(name, f"{self._root}/{name}", known, unread)
            specs += self._kept(known, unread)
        if not specs:
            os.stat(self._root)  # the root is there, so it is this name that is not
        self._known.update(known)
        return specs

    def _versions(
        self, name: str, folder: str, known: dict[str, _Known], unread: set[str]
    ) -> Iterator[ModelSpec]:
        """Yield one name's models and put them into `known`, what cannot be read into `unread`."""
        try:
            for version, path in _subfolders(folder):
                try:
                    found = self._look(name, version, path)
                except OSError as error:
                    _note(error, path, unread)
                    continue
                if found is not None:
                    known[path] = found
                    yield found.spec
        except OSError as error:
            _note(error, folder, unread)

    def _kept(self, known: dict[str, _Known], unread: set[str]) -> Iterator[ModelSpec]:
        """Yield what was known of the folders that cannot be read, and put it into `known`."""
        if not unread:
            return
        for path, before in list(self._known.items()):  # looks add to it meanwhile
            if path not in known and (path in unread or os.path.dirname(path) in unread):
                known[path] = before
                yield before.spec

    def _look(self, name: str, version: str, folder: str) -> _Known | None:
        """Return what lies in a version's folder, None where there is no model."""
        for model_format in ModelFormat:
            path = f"{folder}/model.{model_format}"
            file = _stat_file(path)
            if file is not None:
                signature = self._card_signature(folder)
                before = self._known.get(folder)
                if before is None or before.card != signature:
                    card = _NO_CARD if signature is None else read_card(Path(folder, CARD_FILE))
                elif (before.size_bytes, before.spec.format) == (file.st_size, model_format):
                    return before
                else:
                    card = before.spec.card
                key = ModelKey(name, version)
                spec = ModelSpec(key, model_format, SOURCE, path, file.st_size, card)
                return _Known(file.st_size, signature, spec)
        return None

    def _card_signature(self, folder: str) -> _Signature | None:
        """Return what differs once a card was changed, so that each is read once per change."""
        card = None
        with suppress(OSError):  # a bad card never stops its model from being served
            card = _stat_file(f"{folder}/{CARD_FILE}") if self._reads_cards else None
        return None if card is None else (card.st_mtime_ns, card.st_size, card.st_ino)


def _note(error: OSError, folder: str, unread: set[str]) -> None:
    """Put a folder into `unread` unless the error says that it is gone."""
    # It may have been removed a moment ago; otherwise its absence needs an explanation.
    logger.debug("the folder %s cannot be read: %s", folder, error)
    if error.errno not in _GONE:
        unread.add(folder)


def _subfolders(folder: str) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_part(entry.name) and _is_folder(entry):
                yield entry.name, entry.path


def _is_part(name: str) -> bool:
    if name.endswith(_UNFINISHED):
        return False
    try:
        return ModelRef.parse(name).version is None
    except InvalidParameterError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links, or worse: whoever lists it is told
        return True


def _stat_file(path: str) -> os.stat_result | None:
    """Return what `path` is, None where no file is there; raise OSError where that is unknown."""
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return found if stat.S_ISREG(found.st_mode) else None
