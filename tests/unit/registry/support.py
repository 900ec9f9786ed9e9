"""A clock and sources that do as the test says."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.types import ModelFormat, ModelKey, ModelSpec


def spec(key: str, source: str = "folder") -> ModelSpec:
    """Return an entry for `key`."""
    return ModelSpec(ModelKey(*key.split("@")), ModelFormat.PT, source, f"/{key}/model.pt", 1)


def put(root: Path, place: str, file: str = "model.pt", content: bytes = b"weights") -> Path:
    """Write <root>/<place>/<file> and return its path."""
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    return folder / file


@dataclass
class Clock:
    """A clock that goes when the test says so."""

    now: float = 100.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


@dataclass
class FakeSource:
    """Finds `keys`, or fails with `error`; `on_scan` and `on_look` run while it reads."""

    keys: list[str] = field(default_factory=list)
    error: Exception | None = None
    scans: int = 0
    looks: list[str] = field(default_factory=list)
    on_scan: Callable[[], None] = lambda: None
    on_look: Callable[[], None] = lambda: None

    def __str__(self) -> str:
        return "fake source"

    def scan(self) -> Iterable[ModelSpec]:
        """Return the entries."""
        self.scans += 1
        self.on_scan()
        if self.error is not None:
            raise self.error
        return [spec(key) for key in self.keys]

    def scan_name(self, name: str) -> Sequence[ModelSpec]:
        """Return the entries of one name."""
        self.looks.append(name)
        if self.error is not None:
            raise self.error
        found = [spec(key) for key in self.keys if key.split("@")[0] == name]
        self.on_look()
        return found


class LateSource(FakeSource):
    """What happens while it is scanned, happens after the scan has passed by."""

    def scan(self) -> Iterable[ModelSpec]:
        """Return the entries that there were before."""
        self.scans += 1
        listed = [spec(key) for key in self.keys]
        self.on_scan()
        return listed
