"""A known checkpoint opens from its prepared weights, and never from anything else."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.engines import checkpoint, torch_engine
from serve_app.engines.torch_engine import TorchEngine
from serve_app.types import ImageArray, PredictParams
from tests.support.checkpoints import CheckpointFolder

PARAMS = PredictParams(conf=0.05, max_det=20)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoints that were unpickled."""
    seen: list[Path] = []
    read = checkpoint.read_model

    def spy(path: Path) -> object:
        seen.append(path)
        return read(path)

    monkeypatch.setattr(torch_engine, "read_model", spy)
    return seen


def answer(engine: TorchEngine, path: Path, image: ImageArray) -> list[float]:
    """Open, predict and close; return the findings' confidences."""
    model = engine.open(path)
    model.warm_up()
    result = model.predict(image, PARAMS)
    model.close()
    return [float(value) for value in result.confidence]


@pytest.mark.parametrize("architecture", ["yolo11n", "yolo26n", "yolo11n-cls", "tiny-rtdetr"])
def test_known_checkpoint_is_not_unpickled_again(
    architecture: str,
    tmp_path: Path,
    checkpoints: CheckpointFolder,
    bus: ImageArray,
    reads: list[Path],
) -> None:
    """And answers exactly the same, although no model was open meanwhile."""
    engine = TorchEngine(prepared_dir=tmp_path)
    path = checkpoints(architecture, imgsz=96)

    first = answer(engine, path, bus)
    second = answer(engine, path, bus)

    assert first
    assert second == first
    assert reads == [path]


def test_models_of_one_graph_keep_their_own_weights(
    tmp_path: Path, checkpoints: CheckpointFolder, bus: ImageArray, reads: list[Path]
) -> None:
    """In one folder."""
    engine = TorchEngine(prepared_dir=tmp_path)
    paths = [checkpoints("yolo11n", seed=seed, imgsz=96) for seed in (1, 2)]

    fresh = [answer(engine, path, bus) for path in paths]
    again = [answer(engine, path, bus) for path in paths]

    assert fresh[0] != fresh[1]
    assert again == fresh
    assert len(reads) == 2


def damage(path: Path) -> None:
    """Flip a byte."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    """Add a byte."""
    path.write_bytes(path.read_bytes() + b"\0")


def shorten(path: Path) -> None:
    """Cut it."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [damage, lengthen, shorten, Path.unlink])
def test_spoilt_files_are_made_again(
    spoil: Callable[[Path], None],
    tmp_path: Path,
    checkpoints: CheckpointFolder,
    bus: ImageArray,
    reads: list[Path],
) -> None:
    """A wrong number would be a wrong answer: the checkpoint is read instead."""
    engine = TorchEngine(prepared_dir=tmp_path)
    path = checkpoints("tiny-detect")
    first = answer(engine, path, bus)
    (prepared,) = tmp_path.iterdir()
    spoil(prepared)

    assert answer(engine, path, bus) == first
    assert answer(engine, path, bus) == first
    assert len(reads) == 2


def test_changed_checkpoint_is_another(
    tmp_path: Path, checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """Never the old weights under a new file."""
    engine = TorchEngine(prepared_dir=tmp_path / "prepared")
    path = tmp_path / "model.pt"
    path.write_bytes(checkpoints("yolo11n", seed=1, imgsz=96).read_bytes())
    before = answer(engine, path, bus)
    path.write_bytes(checkpoints("yolo11n", seed=2, imgsz=96).read_bytes())

    assert answer(engine, path, bus) != before


def test_unwritable_folder_is_no_error(
    tmp_path: Path, checkpoints: CheckpointFolder, bus: ImageArray, reads: list[Path]
) -> None:
    """Models open as if nothing were kept."""
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    engine = TorchEngine(prepared_dir=blocked)
    path = checkpoints("tiny-detect")

    assert answer(engine, path, bus) == answer(engine, path, bus)
    assert len(reads) == 2


def test_nothing_is_kept_without_a_folder(
    checkpoints: CheckpointFolder, bus: ImageArray, reads: list[Path]
) -> None:
    """The default."""
    engine = TorchEngine()
    path = checkpoints("tiny-detect")

    answer(engine, path, bus)
    answer(engine, path, bus)

    assert len(reads) == 2
    assert len(engine._graphs) == 0
