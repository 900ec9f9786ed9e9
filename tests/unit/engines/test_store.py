"""The store keeps to its limit, shows whole files only, and gives in to every disk."""

import errno
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from serve_app.engines.store import ArtifactStore

KIB = 1024
PROCESSES = multiprocessing.get_context("fork")


def _writes(nbytes: int, mark: bytes = b"x") -> Callable[[Path], None]:
    return lambda path: _write(path, nbytes, mark)


def _write(path: Path, nbytes: int, mark: bytes) -> None:
    path.write_bytes(mark * nbytes)


def _name(number: int) -> str:
    return f"{number:032x}.safetensors"


def _put_all(store: ArtifactStore, *numbers: int, nbytes: int = KIB) -> None:
    """Keep files as if one had been used after the other."""
    for number in numbers:
        path = store.put(_name(number), _writes(nbytes))
        assert path is not None
        os.utime(path, (1000 + number, 1000 + number))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_put_is_found(tmp_path: Path) -> None:
    """In a folder that is made when it is needed."""
    store = ArtifactStore(tmp_path / "a" / "b", 10 * KIB)
    assert store.find(_name(1)) is None
    assert store.used_bytes == 0
    store.tidy()

    path = store.put(_name(1), _writes(KIB))
    assert path == store.find(_name(1))
    assert path is not None
    assert path.read_bytes() == b"x" * KIB
    assert store.used_bytes == KIB

    store.discard(_name(1))
    store.discard(_name(1))
    assert store.find(_name(1)) is None
    assert _names(store.folder) == []


def test_room_is_what_is_left(tmp_path: Path) -> None:
    """Never less than nothing."""
    _put_all(ArtifactStore(tmp_path, 3 * KIB), 1, 2)
    assert ArtifactStore(tmp_path, 3 * KIB).room_bytes() == KIB
    assert ArtifactStore(tmp_path, KIB).room_bytes() == 0
    assert ArtifactStore(tmp_path / "missing", KIB).room_bytes() == KIB


def test_least_recently_used_files_make_room(tmp_path: Path) -> None:
    """Being found is being used."""
    store = ArtifactStore(tmp_path, 3 * KIB)
    _put_all(store, 1, 2, 3)
    assert store.find(_name(1)) is not None
    store.put(_name(4), _writes(2 * KIB))
    assert _names(tmp_path) == [_name(1), _name(4)]
    assert store.used_bytes == 3 * KIB


def test_file_just_written_is_not_evicted(tmp_path: Path) -> None:
    """Even when the clock of another machine makes it the oldest."""
    store = ArtifactStore(tmp_path, 2 * KIB)
    _put_all(store, 1, 2)
    ahead = time.time() + 1000
    for number in (1, 2):
        os.utime(tmp_path / _name(number), (ahead, ahead))
    assert store.put(_name(3), _writes(KIB)) is not None
    assert _names(tmp_path) == [_name(2), _name(3)]


def test_file_over_the_limit_is_not_kept_and_evicts_nothing(tmp_path: Path) -> None:
    """The limit itself is still within it."""
    store = ArtifactStore(tmp_path, 2 * KIB)
    _put_all(store, 1)
    assert store.put(_name(2), _writes(2 * KIB + 1)) is None
    assert _names(tmp_path) == [_name(1)]
    assert store.put(_name(2), _writes(2 * KIB)) is not None
    assert _names(tmp_path) == [_name(2)]


def test_limit_of_nothing_keeps_nothing(tmp_path: Path) -> None:
    """Nothing is written or found, and what an earlier limit left goes."""
    _put_all(ArtifactStore(tmp_path, KIB), 1)
    store = ArtifactStore(tmp_path, 0)
    assert store.put(_name(2), lambda _: pytest.fail("was written")) is None
    assert store.find(_name(1)) is None
    store.tidy()
    assert _names(tmp_path) == []


def test_lowered_limit_is_kept_to(tmp_path: Path) -> None:
    """The most recently used stay."""
    _put_all(ArtifactStore(tmp_path, 9 * KIB), 1, 2, 3)
    ArtifactStore(tmp_path, 2 * KIB).tidy()
    assert _names(tmp_path) == [_name(2), _name(3)]


def test_only_own_files_are_counted_and_removed(tmp_path: Path) -> None:
    """Whatever else an operator keeps in the folder stays."""
    foreign = ["model.pt", "notes.txt", ".hidden.safetensors", ".unfinished-yours"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"x" * 5 * KIB)
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "model.pt")
    store = ArtifactStore(tmp_path, KIB)
    _put_all(store, 1, 2)
    expected = sorted([*foreign, "folder.safetensors", "link.safetensors", _name(2)])
    assert _names(tmp_path) == expected
    assert store.used_bytes == KIB


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b.safetensors", "x.pt", ".safetensors"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    """They are our own mistake."""
    store = ArtifactStore(tmp_path, KIB)
    for use in (store.find, store.discard, lambda name: store.put(name, _writes(1))):
        with pytest.raises(ValueError, match="cannot be kept"):
            use(name)


def test_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    """The error is the caller's; a file of that name stays what it was."""
    store = ArtifactStore(tmp_path, 9 * KIB)
    _put_all(store, 1)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        (path.parent / ".tmp-of-a-library").write_bytes(b"half")
        raise RuntimeError("upset")

    with pytest.raises(RuntimeError, match="upset"):
        store.put(_name(1), fail)
    assert _names(tmp_path) == [_name(1)]
    assert (tmp_path / _name(1)).read_bytes() == b"x" * KIB


def test_full_disk_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Until something could be kept again."""
    store = ArtifactStore(tmp_path, 9 * KIB)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with caplog.at_level(logging.WARNING):
        assert store.put(_name(1), fail) is None
        assert store.put(_name(2), fail) is None
        assert len(caplog.records) == 1
        assert "No space left on device" in caplog.text
        assert _names(tmp_path) == []
        assert store.put(_name(3), _writes(1)) is not None
        assert store.put(_name(1), fail) is None
    assert len(caplog.records) == 2


def test_folder_that_cannot_be_made_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file stands in its place."""
    (tmp_path / "file").write_text("")
    store = ArtifactStore(tmp_path / "file", KIB)
    assert store.put(_name(1), _writes(1)) is None
    assert store.find(_name(1)) is None
    assert store.used_bytes == 0
    store.tidy()
    store.discard(_name(1))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_read_only_folder_is_read(
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is marked as used, and nobody complains."""
    store = ArtifactStore(tmp_path, KIB)
    _put_all(store, 1)

    def refuse(path: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "utime", refuse)
    assert store.find(_name(1)) == tmp_path / _name(1)
    assert store.find(_name(2)) is None
    assert not caplog.records


def _put_and_hang(store: ArtifactStore, begun: Event) -> None:
    def hang(path: Path) -> None:
        path.write_bytes(b"half")
        begun.set()
        time.sleep(60)

    store.put(_name(1), hang)


def test_killed_writer_leaves_nothing_for_long(tmp_path: Path) -> None:
    """What a living process writes is left alone."""
    store = ArtifactStore(tmp_path, 9 * KIB)
    begun = PROCESSES.Event()
    writer = PROCESSES.Process(target=_put_and_hang, args=(store, begun))
    writer.start()
    try:
        assert begun.wait(10)
        store.tidy()
        assert len(_names(tmp_path)) == 1
        assert store.find(_name(1)) is None
        assert store.used_bytes == 0
    finally:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    store.put(_name(2), _writes(1))
    assert _names(tmp_path) == [_name(2)]


def test_old_leavings_of_another_machine_go(tmp_path: Path) -> None:
    """Its processes cannot be asked after, so only their age tells."""
    leavings = [tmp_path / f".unfinished-0123456789ab-4194303-{n:016x}" for n in (1, 2)]
    for folder in leavings:
        folder.mkdir()
        (folder / _name(1)).write_bytes(b"half")
    os.utime(leavings[0], (1000, 1000))
    ArtifactStore(tmp_path, KIB).tidy()
    assert _names(tmp_path) == [leavings[1].name]


def _put_in_turn(store: ArtifactStore, mark: bytes, rounds: int) -> None:
    for number in range(rounds):
        assert store.put(_name(number % 4), _writes(64 * KIB, mark)) is not None


def test_processes_race_for_the_same_names(tmp_path: Path) -> None:
    """Whoever finds a file finds one writer's whole file, and nobody fails."""
    store = ArtifactStore(tmp_path, 3 * 64 * KIB)
    writers = [
        PROCESSES.Process(target=_put_in_turn, args=(store, mark, 60)) for mark in (b"a", b"b")
    ]
    for writer in writers:
        writer.start()
    read = 0
    while any(writer.is_alive() for writer in writers):
        for number in range(4):
            try:
                found = store.find(_name(number))
                content = found.read_bytes() if found else None
            except FileNotFoundError:
                continue
            if content is not None:
                read += 1
                assert content in (b"a" * 64 * KIB, b"b" * 64 * KIB)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert read > 10
    assert store.used_bytes == store.limit_bytes
    assert all(name.endswith(".safetensors") for name in _names(tmp_path))


def _put_numbered(store: ArtifactStore, first: int, rounds: int) -> None:
    for number in range(first, first + rounds):
        store.put(_name(number), _writes(KIB))


def test_processes_that_make_room_at_once_do_not_empty_the_folder(tmp_path: Path) -> None:
    """Each would otherwise remove what the other has just kept."""
    store = ArtifactStore(tmp_path, KIB)
    for attempt in range(10):
        writers = [
            PROCESSES.Process(target=_put_numbered, args=(store, 1000 * attempt + 100 * n, 10))
            for n in range(3)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
            assert writer.exitcode == 0
        assert store.used_bytes == KIB
