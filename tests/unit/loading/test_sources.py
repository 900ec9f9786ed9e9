"""Where files come from, and what is said when they do not."""

import asyncio
import fcntl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from serve_app.engines import downloads_are_forbidden
from serve_app.errors import ModelNotFoundError, SourceUnavailableError
from serve_app.loading.sources.folder import FolderSource
from serve_app.loading.sources.ultralytics import UltralyticsSource
from serve_app.types import ModelFormat, ModelKey, ModelSpec

CONTENT = b"weights" * 100_000
URL = "https://user:secret@assets.example/yolo11n.pt"
SPEC = ModelSpec(ModelKey("yolo11n", "8.4"), ModelFormat.PT, "ultralytics", URL)

Handler = Callable[[httpx.Request], httpx.Response]


def source(folder: Path, handler: Handler) -> UltralyticsSource:
    """Return a source whose network is `handler`."""
    return UltralyticsSource(folder, transport=httpx.MockTransport(handler))


def serve(_: httpx.Request) -> httpx.Response:
    """Answer with the file."""
    return httpx.Response(200, content=CONTENT)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the operator had said nothing of downloads."""
    monkeypatch.setenv("YOLO_OFFLINE", "false")
    monkeypatch.delenv("SERVE_APP_ASSUMED_OFFLINE", raising=False)


def leftovers(folder: Path) -> list[str]:
    """Return the files of models and of downloads under way."""
    return sorted(path.name for path in folder.rglob("*") if path.suffix in {".pt", ".part"})


async def test_folder_gives_the_path_itself(tmp_path: Path) -> None:
    """Nothing is copied."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")

    found = await FolderSource().fetch(ModelSpec(SPEC.key, ModelFormat.PT, "folder", str(path)))

    assert found == path


def test_what_the_package_assumes_forbids_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ultralytics itself stays offline by default; only the operator's word binds this source."""
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    assert downloads_are_forbidden()
    monkeypatch.setenv("SERVE_APP_ASSUMED_OFFLINE", "true")
    assert not downloads_are_forbidden()


@pytest.mark.parametrize("make", [lambda _: None, Path.mkdir])
async def test_folder_tells_when_a_file_has_vanished(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    """Without telling where on this machine it was."""
    path = tmp_path / "model.pt"
    make(path)

    with pytest.raises(SourceUnavailableError) as caught:
        await FolderSource().fetch(ModelSpec(SPEC.key, ModelFormat.PT, "folder", str(path)))

    assert "yolo11n@8.4" in caught.value.detail
    assert str(tmp_path) not in caught.value.detail


async def test_download_is_kept(tmp_path: Path) -> None:
    """The second time asks nobody."""
    path = await source(tmp_path, serve).fetch(SPEC)
    again = await source(tmp_path, lambda _: httpx.Response(500)).fetch(SPEC)

    assert path == again == tmp_path / "yolo11n" / "8.4.pt"
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["8.4.pt"]


async def test_offline_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is tried; what is cached is still given."""
    monkeypatch.setenv("YOLO_OFFLINE", "true")

    with pytest.raises(SourceUnavailableError, match="YOLO_OFFLINE"):
        await source(tmp_path, serve).fetch(SPEC)

    monkeypatch.setenv("YOLO_OFFLINE", "false")
    await source(tmp_path, serve).fetch(SPEC)
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    assert (await source(tmp_path, serve).fetch(SPEC)).exists()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, ModelNotFoundError),
        (410, ModelNotFoundError),
        (403, SourceUnavailableError),
        (500, SourceUnavailableError),
        (204, SourceUnavailableError),
    ],
)
async def test_answers_without_a_file(status: int, error: type[Exception], tmp_path: Path) -> None:
    """A missing file is told apart from a server in trouble."""
    with pytest.raises(error):
        await source(tmp_path, lambda _: httpx.Response(status)).fetch(SPEC)

    assert leftovers(tmp_path) == []


async def test_network_failure_tells_what_to_do_and_no_secret(tmp_path: Path) -> None:
    """The URL may hold credentials."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"cannot reach {request.url}")

    with pytest.raises(SourceUnavailableError) as caught:
        await source(tmp_path, fail).fetch(SPEC)

    assert "model repository" in caught.value.detail
    assert "secret" not in caught.value.detail
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("content", [CONTENT[:-1], b""])
async def test_short_download_is_refused(content: bytes, tmp_path: Path) -> None:
    """Fewer bytes than declared, or none."""

    def cut(_: httpx.Request) -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            yield content

        return httpx.Response(200, headers={"Content-Length": str(len(CONTENT))}, content=body())

    with pytest.raises(SourceUnavailableError, match="cut short"):
        await source(tmp_path, cut).fetch(SPEC)

    assert leftovers(tmp_path) == []


async def test_unwritable_cache_is_told(tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "yolo11n").write_bytes(b"")

    with pytest.raises(SourceUnavailableError, match="cannot be stored"):
        await source(tmp_path, serve).fetch(SPEC)


async def test_replicas_of_a_node_download_once(tmp_path: Path) -> None:
    """One downloads, the others find its file."""
    asked = []

    def count(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return serve(request)

    paths = await asyncio.gather(*(source(tmp_path, count).fetch(SPEC) for _ in range(4)))

    assert len(asked) == 1
    assert len(set(paths)) == 1


async def test_waiting_for_another_replica_can_be_cancelled(tmp_path: Path) -> None:
    """While another process holds the lock."""
    folder = tmp_path / "yolo11n"
    folder.mkdir()
    with (folder / "8.4.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(source(tmp_path, serve).fetch(SPEC), timeout=0.05)

    assert (await source(tmp_path, serve).fetch(SPEC)).exists()
