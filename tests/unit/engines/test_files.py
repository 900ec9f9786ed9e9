"""What was found out about a file is found out once, until the file is another."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.engines.files import KnownFiles
from serve_app.errors import SourceUnavailableError


def test_files_are_inspected_once_until_they_change(tmp_path: Path) -> None:
    """Even if there was nothing to be found."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"one")
    known: KnownFiles[None] = KnownFiles()
    inspected: list[bytes] = []

    def inspect(path: Path) -> None:
        inspected.append(path.read_bytes())

    known.get(path, inspect)
    known.get(path, inspect)
    path.write_bytes(b"another")
    known.get(path, inspect)

    assert inspected == [b"one", b"another"]


class _Forgetful(dict[Any, Any]):
    """Facts that another thread clears as soon as this one has looked whether there are any."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        self.clear()
        return found


def test_facts_may_be_cleared_meanwhile(tmp_path: Path) -> None:
    """Threads share them without a lock."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"one")
    known: KnownFiles[int] = KnownFiles()
    known._facts = _Forgetful()

    assert [known.get(path, lambda _path: 7) for _ in range(3)] == [7, 7, 7]


def test_missing_file_is_unavailable(tmp_path: Path) -> None:
    """It may have been removed since it was fetched."""
    known: KnownFiles[int] = KnownFiles()

    with pytest.raises(SourceUnavailableError):
        known.get(tmp_path / "model.pt", lambda _path: 7)
