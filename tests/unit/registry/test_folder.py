"""The model repository: what is found in it and what is left out."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from serve_app.registry.cards import read_card
from serve_app.registry.folder import FolderScanner
from serve_app.types import ModelCard, ModelFormat, Task
from tests.unit.registry.support import put


def keys(root: Path) -> list[str]:
    """Return the keys of what one scan finds."""
    return sorted(str(entry.key) for entry in FolderScanner(root).scan())


def test_both_formats_are_found(tmp_path: Path) -> None:
    """With place, size and card."""
    path = put(tmp_path, "parts/2")
    put(tmp_path, "parts/2", "model.yaml", b"task: detect\nclasses: [bolt]")
    put(tmp_path, "codes/1", "model.onnx")
    codes, parts = sorted(FolderScanner(tmp_path).scan(), key=lambda entry: entry.key)
    assert parts.location == str(path)
    assert (parts.format, parts.source, parts.size_bytes) == (ModelFormat.PT, "folder", 7)
    assert (parts.card.task, parts.card.classes) == (Task.DETECT, ("bolt",))
    assert codes.format is ModelFormat.ONNX


def test_pt_is_preferred_to_onnx(tmp_path: Path) -> None:
    """The one runs on every device, the other may be an export of it."""
    put(tmp_path, "a/1", "model.onnx")
    put(tmp_path, "a/1", "model.pt")
    assert [entry.format for entry in FolderScanner(tmp_path).scan()] == [ModelFormat.PT]


def test_a_relative_root_gives_absolute_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes have other working folders."""
    put(tmp_path, "models/a/1")
    monkeypatch.chdir(tmp_path)
    assert next(FolderScanner(Path("models")).scan()).location == str(
        tmp_path / "models/a/1/model.pt"
    )


def test_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    """Stray files, odd names, unfinished uploads, folders without a model."""
    put(tmp_path, "good/1")
    put(tmp_path, ".", "model.pt")
    put(tmp_path, "good", "model.pt")
    put(tmp_path, "good", "2")
    put(tmp_path, "empty/1", "readme.txt")
    (tmp_path / "folder/1/model.pt").mkdir(parents=True)
    for odd in (".hidden/1", "a b/1", "a@1/1", "-a/1", "ä/1", "x" * 129 + "/1"):
        put(tmp_path, odd)
    for odd in ("good/.2", "good/3.tmp", "good/4.part", "upload.partial/1", "good/a b"):
        put(tmp_path, odd)
    assert keys(tmp_path) == ["good@1"]


def test_links_are_followed_unless_they_dangle(tmp_path: Path) -> None:
    """The repository belongs to the operator, so a link may leave it."""
    root = tmp_path / "models"
    put(root, "a/1")
    outside = put(tmp_path, "elsewhere/7")
    (root / "b").symlink_to(outside.parent.parent)
    (root / "c/1").mkdir(parents=True)
    (root / "c/1/model.pt").symlink_to(outside)
    (root / "d").symlink_to(tmp_path / "nowhere")
    (root / "e/1").mkdir(parents=True)
    (root / "e/1/model.pt").symlink_to(tmp_path / "nowhere")
    (root / "f").symlink_to(root / "f")
    assert keys(root) == ["a@1", "b@7", "c@1"]


def test_a_pipe_does_not_stop_the_scan(tmp_path: Path) -> None:
    """Opening one would wait for ever."""
    put(tmp_path, "a/1")
    os.mkfifo(tmp_path / "a/1/model.yaml")
    (tmp_path / "b/1").mkdir(parents=True)
    os.mkfifo(tmp_path / "b/1/model.pt")
    assert keys(tmp_path) == ["a@1"]


def test_a_folder_that_cannot_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be removed between being listed and being read."""
    put(tmp_path, "a/1")
    put(tmp_path, "b/1")
    scandir = os.scandir

    def fail(path: str) -> object:
        if path.endswith("/a"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    assert keys(tmp_path) == ["b@1"]


def test_a_missing_root_is_an_error(tmp_path: Path) -> None:
    """An empty registry would look as if all models had been removed."""
    with pytest.raises(OSError, match="nothing"):
        list(FolderScanner(tmp_path / "nothing").scan())
    with pytest.raises(OSError, match="nothing"):
        FolderScanner(tmp_path / "nothing").scan_name("a")


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_root_that_vanishes_during_a_scan_is_an_error(tmp_path: Path, exchanged: bool) -> None:
    """Its list goes on, and a part of the models would seem to be all; or a mount has gone."""
    root = tmp_path / "models"
    for number in range(5):
        put(root, f"m{number}/1")
    scanner = FolderScanner(root)
    assert len(list(scanner.scan())) == 5
    scan = scanner.scan()
    next(scan)
    root.rename(tmp_path / "away")
    if exchanged:
        root.mkdir()
    with pytest.raises(OSError, match="models"):
        list(scan)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (errno.EIO, True),
        (errno.ESTALE, True),
        (errno.EACCES, True),
        (errno.ENOENT, False),
        (errno.ENOTDIR, False),
    ],
)
@pytest.mark.parametrize(("call", "place"), [("scandir", "a"), ("stat", "a/1/model.pt")])
def test_what_cannot_be_read_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, place: str, error: int, kept: bool
) -> None:
    """Only what the system says is gone has gone; and other folders are read all the same."""
    for folder in ("a/1", "b/1"):
        put(tmp_path, folder)
    scanner = FolderScanner(tmp_path)
    (before,) = [entry for entry in scanner.scan() if entry.key.name == "a"]
    put(tmp_path, "b/2")
    honest = getattr(os, call)

    def fail(path: str | Path, **options: bool) -> object:
        if str(path) == f"{tmp_path}/{place}":
            raise OSError(error, os.strerror(error), path)
        return honest(path, **options)

    monkeypatch.setattr(os, call, fail)
    for _ in range(2):
        found = sorted(scanner.scan(), key=lambda entry: entry.key)
        assert [str(entry.key) for entry in found] == ["a@1", "b@1", "b@2"][not kept :]
        assert scanner.scan_name("a") == ([before] if kept else [])


def test_a_version_that_cannot_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a card that cannot be read hide its model."""
    for folder in ("a/1", "a/2", "a/3"):
        put(tmp_path, folder)
    put(tmp_path, "a/3", "model.yaml", b"task: pose\n")
    first = os.listdir(tmp_path / "a")[0]
    honest = os.stat

    def fail(path: str | Path, **options: bool) -> object:
        if str(path).endswith((f"/{first}/model.pt", "/model.yaml")):
            raise PermissionError(errno.EACCES, "no access", path)
        return honest(path, **options)

    monkeypatch.setattr(os, "stat", fail)
    assert keys(tmp_path) == sorted({"a@1", "a@2", "a@3"} - {f"a@{first}"})


class BrokenList:
    """The list of a folder: its entries cannot be told from files, and it breaks off."""

    def __init__(self, names: list[str], folder: str) -> None:
        self._entries = [BrokenEntry(name, f"{folder}/{name}") for name in names]

    def __enter__(self) -> Self:
        return self

    def __iter__(self) -> Iterator["BrokenEntry"]:
        yield from self._entries
        raise OSError(errno.EIO, "broken off")

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


class BrokenEntry(NamedTuple):
    """What is known of one of them."""

    name: str
    path: str

    def is_dir(self) -> bool:
        """Fail."""
        raise OSError(errno.EIO, "unknown", self.path)


def test_a_list_that_breaks_off_is_completed_from_what_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each version once; that of which nothing more can be told was a folder."""
    for folder in ("a/1", "a/2", "a/3"):
        put(tmp_path, folder)
    scanner = FolderScanner(tmp_path)
    before = sorted(scanner.scan(), key=lambda entry: entry.key)
    put(tmp_path, "a/3", content=b"other weights")
    scandir = os.scandir

    def broken(path: str) -> object:
        return BrokenList(["3"], path) if path.endswith("/a") else scandir(path)

    monkeypatch.setattr(os, "scandir", broken)
    for found in (list(scanner.scan()), scanner.scan_name("a")):
        first, *rest = found
        assert first.size_bytes == len(b"other weights")
        assert sorted(rest, key=lambda entry: entry.key) == before[:2]


def test_one_name_is_scanned_by_itself(tmp_path: Path) -> None:
    """It finds what a scan of all finds of that name, and reads no other folder."""
    for place in ("a/1", "a/2.part", "a/3", "b/1"):
        put(tmp_path, place)
    put(tmp_path, "a/3", "model.yaml", b"task: pose\n")
    scanner = FolderScanner(tmp_path)
    of_all = [entry for entry in scanner.scan() if entry.key.name == "a"]
    assert scanner.scan_name("a") == of_all
    assert [entry.card.task for entry in sorted(of_all, key=lambda entry: entry.key)] == [
        None,
        Task.POSE,
    ]
    for other in ("c", "..", ".hidden", "a/3", ""):
        assert scanner.scan_name(other) == []


def test_cards_are_left_out_where_nobody_reads_them(tmp_path: Path) -> None:
    """A detector serves by the file alone."""
    put(tmp_path, "a/1")
    put(tmp_path, "a/1", "model.yaml", b"task: pose\n")
    scanner = FolderScanner(tmp_path, cards=False)
    assert [entry.card for entry in scanner.scan()] == [ModelCard()]
    assert [entry.card for entry in scanner.scan_name("a")] == [ModelCard()]


def test_a_card_is_read_once_per_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken one is complained of once, not every two seconds."""
    put(tmp_path, "a/1")
    path = put(tmp_path, "a/1", "model.yaml", b"task: [")
    source = FolderScanner(tmp_path)
    read: list[Path] = []

    def counted(path: Path) -> ModelCard:
        read.append(path)
        return read_card(path)

    monkeypatch.setattr("serve_app.registry.folder.read_card", counted)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [entry.card.task for entry in source.scan()] == [None]
    assert len(read) == len(caplog.records) == 1
    assert str(path) in caplog.text
    path.write_bytes(b"task: pose\n")
    assert [entry.card.task for entry in source.scan()] == [Task.POSE]
    path.unlink()
    assert [entry.card.task for entry in source.scan()] == [None]


def test_what_has_not_changed_is_the_same_object(tmp_path: Path) -> None:
    """So two scans of 10,000 models are compared at once; a file that is replaced is noticed."""
    for place in ("a/1", "b/1"):
        put(tmp_path, place)
        put(tmp_path, place, "model.yaml", b"task: pose\n")
    scanner = FolderScanner(tmp_path)
    before = {entry.key.name: entry for entry in scanner.scan()}
    put(tmp_path, "a/1", content=b"other weights")
    after = {entry.key.name: entry for entry in scanner.scan()}
    assert after["b"] is before["b"]
    assert scanner.scan_name("b")[0] is before["b"]
    assert after["a"].size_bytes == len(b"other weights")
    assert after["a"].card is before["a"].card
    (tmp_path / "b/1/model.pt").rename(tmp_path / "b/1/model.onnx")
    assert [entry.format for entry in scanner.scan_name("b")] == [ModelFormat.ONNX]
