"""The model repository: `<root>/<name>/<version>/model.pt` or `model.onnx`, and `model.yaml`.

Where both files lie in one folder, `model.pt` is served. Whatever does not fit is left out: stray
files, dangling links, names that no reference can spell (hidden ones among them), and names that
end in `.tmp`, `.part` or `.partial`, so that an upload can be renamed into place when complete.
A link may lead anywhere: the repository belongs to the operator.
"""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from serve_app.errors import InvalidParameterError
from serve_app.registry.cards import read_card
from serve_app.types import ModelCard, ModelFormat, ModelKey, ModelRef, ModelSpec

logger = logging.getLogger(__name__)

SOURCE = "folder"
CARD_FILE = "model.yaml"
_UNFINISHED = (".tmp", ".part", ".partial")

_Signature = tuple[int, int, int]


class FolderScanner:
    """Finds the models below one folder.

    One scan at a time, the registry sees to that; `scan_name` may run beside it in other threads.
    """

    def __init__(self, root: Path, *, cards: bool = True) -> None:
        """Look below `root`; without `cards` none is read, which of 10,000 takes seconds."""
        self._root = Path(os.path.abspath(root))
        self._reads_cards = cards
        self._cards: dict[str, tuple[_Signature, ModelCard]] = {}

    def __str__(self) -> str:
        return f"folder {self._root}"

    def scan(self) -> list[ModelSpec]:
        """Return the models that lie there now.

        Raises:
            OSError: the root itself cannot be read
        """
        cards: dict[str, tuple[_Signature, ModelCard]] = {}
        specs = [
            spec
            for name, folder in _subfolders(str(self._root))
            for spec in self._versions(name, folder, cards)
        ]
        self._cards = cards
        return specs

    def scan_name(self, name: str) -> list[ModelSpec]:
        """Return the versions of one name that lie there now, however many other names there are.

        Raises:
            OSError: the root itself cannot be read
        """
        cards: dict[str, tuple[_Signature, ModelCard]] = {}
        found = self._versions(name, f"{self._root}/{name}", cards) if _is_part(name) else ()
        specs = list(found)
        if not specs:
            os.stat(self._root)  # the root is there, so it is this name that is not
        self._cards.update(cards)
        return specs

    def _versions(
        self, name: str, folder: str, cards: dict[str, tuple[_Signature, ModelCard]]
    ) -> Iterator[ModelSpec]:
        try:
            for version, path in _subfolders(folder):
                spec = self._spec(ModelKey(name, version), path, cards)
                if spec is not None:
                    yield spec
        except OSError as error:
            # It may have been removed a moment ago; otherwise its absence needs an explanation.
            logger.debug("the folder %s is left out: %s", folder, error)

    def _spec(
        self, key: ModelKey, folder: str, cards: dict[str, tuple[_Signature, ModelCard]]
    ) -> ModelSpec | None:
        for model_format in ModelFormat:
            path = f"{folder}/model.{model_format}"
            found = _stat_file(path)
            if found is not None:
                card = self._card(f"{folder}/{CARD_FILE}", cards)
                return ModelSpec(key, model_format, SOURCE, path, found.st_size, card)
        return None

    def _card(self, path: str, cards: dict[str, tuple[_Signature, ModelCard]]) -> ModelCard:
        """Return the card in `path`; it is read, and complained of, once per change."""
        if not self._reads_cards:
            return ModelCard()
        found = _stat_file(path)
        if found is None:
            return ModelCard()
        signature = (found.st_mtime_ns, found.st_size, found.st_ino)
        known = self._cards.get(path)
        if known is None or known[0] != signature:
            known = (signature, read_card(Path(path)))
        cards[path] = known
        return known[1]


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
    except OSError:  # a circle of links
        return False


def _stat_file(path: str) -> os.stat_result | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None
