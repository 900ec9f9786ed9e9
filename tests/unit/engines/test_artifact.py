"""Prepared weights answer as their checkpoint does, and nothing else is ever taken for them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from serve_app.engines import torch_engine
from serve_app.engines.artifact import ArtifactError, read_artifact
from serve_app.engines.precision import Precision
from serve_app.engines.store import ArtifactStore
from serve_app.engines.torch_engine import TorchEngine
from serve_app.types import ImageArray, ImageResult, PredictParams
from tests.support.checkpoints import CheckpointFolder
from tests.support.models import answer

PARAMS = PredictParams(conf=0.01, max_det=40)
ARCHITECTURES = [
    "tiny-detect",
    "tiny-end2end",
    "tiny-rtdetr",
    "yolov8n",
    "yolo26n",
    "yolo11n-seg",
    "yolo11n-pose",
    "yolo11n-obb",
    "yolo11n-cls",
]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An empty store."""
    return ArtifactStore(tmp_path / "prepared", 2**30)


def engine_with(store: ArtifactStore, precision: Precision = "fp32") -> TorchEngine:
    """Return an engine of its own, as after a restart."""
    return TorchEngine(precision=precision, store=store)


def assert_equal(ours: ImageResult, expected: ImageResult) -> None:
    """Bit by bit."""
    assert ours.confidence.tolist() == expected.confidence.tolist()
    assert ours.class_id.tolist() == expected.class_id.tolist()
    for name in ("boxes", "corners", "keypoints"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name))
    for one, other in zip(ours.polygons or (), expected.polygons or (), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prepared_model_answers_as_its_checkpoint(
    architecture: str,
    precision: Precision,
    checkpoints: CheckpointFolder,
    store: ArtifactStore,
    bus: ImageArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a process that never read the checkpoint, whatever the task."""
    path = checkpoints(architecture, imgsz=96)
    plain = engine_with(store, precision).open(path)
    expected = answer(plain, bus, PARAMS)
    assert engine_with(store, precision).prepare(path)
    for name in ("read_model", "read_structure"):
        monkeypatch.delattr(torch_engine, name)

    engine = engine_with(store, precision)
    estimate = engine.verify(path)
    model = engine.open(path)

    assert_equal(answer(model, bus, PARAMS), expected)
    assert model.info == plain.info
    assert estimate.own_bytes == model.footprint.own_bytes == plain.footprint.own_bytes
    assert estimate.shared.keys() == plain.footprint.shared.keys()
    assert not engine.prepare(path), "it is there already"


def test_prepared_and_plain_models_share_a_graph(
    checkpoints: CheckpointFolder, store: ArtifactStore
) -> None:
    """The signature does not tell how a model was opened."""
    engine = engine_with(store)
    first, second = (checkpoints("tiny-detect", seed=seed) for seed in (1, 2))
    assert engine.prepare(first)

    models = [engine.open(path) for path in (first, second)]

    assert len(engine._graphs) == 1
    assert models[0]._weights.layout == models[1]._weights.layout


def test_artifact_is_a_safetensors_file(
    checkpoints: CheckpointFolder, store: ArtifactStore
) -> None:
    """Other tools read it, and no pickle is in it."""
    engine = engine_with(store, "bf16")
    path = checkpoints("tiny-detect")
    engine.prepare(path)
    found = store.find(engine._name(path))
    assert found is not None

    with safe_open(found, framework="np") as file:
        metadata = file.metadata()
        names = set(file.keys())

    assert json.loads(metadata["description"])["task"] == "detect"
    assert "model.0.conv.weight" in names
    assert not any(".bn." in name for name in names), "batch norm is folded"


def test_precisions_are_prepared_apart(checkpoints: CheckpointFolder, store: ArtifactStore) -> None:
    """Weights of one are never taken for the other's."""
    path = checkpoints("tiny-detect")

    assert engine_with(store, "fp32").prepare(path)
    assert engine_with(store, "bf16").prepare(path)

    sizes = [engine_with(store, p).open(path).footprint.own_bytes for p in ("fp32", "bf16")]
    assert sizes[1] < 0.6 * sizes[0]


def cut(data: bytes) -> bytes:
    """Truncated."""
    return data[:-100]


def flip(data: bytes) -> bytes:
    """One bit of a weight."""
    return data[:-50] + bytes([data[-50] ^ 1]) + data[-49:]


def flip_header(data: bytes) -> bytes:
    """A word of the description, the JSON still sound."""
    assert b'\\"detect\\"' in data
    return data.replace(b'\\"stride\\": 32', b'\\"stride\\": 64')


def swap(data: bytes) -> bytes:
    """A structure of another kind under the same signature."""
    return data.replace(b"torch.nn.modules.activation.SiLU", b"torch.nn.modules.activation.Mish")


def reshape(data: bytes) -> bytes:
    """A tensor of another shape, in the same bytes."""
    assert b'"shape": [16, 3, 3, 3]' in data
    return data.replace(b'"shape": [16, 3, 3, 3]', b'"shape": [3, 16, 3, 3]')


def belittle(data: bytes) -> bytes:
    """Fewer bytes than the tensors take, by which room is kept free."""
    return re.sub(rb'"(own|graph)_bytes": "\d', rb'"\1_bytes": "0', data)


HEAD_DAMAGE: list[Callable[[bytes], bytes]] = [flip_header, swap, reshape, belittle]
DAMAGE: list[Callable[[bytes], bytes]] = [
    cut,
    flip,
    *HEAD_DAMAGE,
    lambda _data: b"",
    lambda data: data + b"\0",
    lambda data: b"\xff" * len(data),
    lambda _data: (2).to_bytes(8, "little") + b"{}",
    lambda _data: (2).to_bytes(8, "little") + b"[]",
    lambda _data: (9).to_bytes(8, "little") + b"not JSON!",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_artifact_is_never_served(
    damage: Callable[[bytes], bytes],
    checkpoints: CheckpointFolder,
    store: ArtifactStore,
    bus: ImageArray,
) -> None:
    """The checkpoint is opened plainly, and prepared anew."""
    path = checkpoints("tiny-detect", imgsz=96)
    engine = engine_with(store)
    expected = answer(engine.open(path), bus, PARAMS)
    engine.prepare(path)
    found = store.find(engine._name(path))
    assert found is not None
    whole = found.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    found.write_bytes(damaged)
    with pytest.raises(ArtifactError) as caught:
        read_artifact(found)
    assert type(caught.value) is ArtifactError

    model = engine_with(store).open(path)

    assert_equal(answer(model, bus, PARAMS), expected)
    assert not engine.is_prepared(path), "it was thrown away"
    assert engine.prepare(path)


def test_changed_checkpoint_is_another(
    tmp_path: Path, checkpoints: CheckpointFolder, store: ArtifactStore, bus: ImageArray
) -> None:
    """Prepared weights belong to content, not to a path."""
    path = tmp_path / "model.pt"
    path.write_bytes(checkpoints("tiny-detect", seed=1, imgsz=96).read_bytes())
    engine = engine_with(store)
    engine.prepare(path)
    path.write_bytes(checkpoints("tiny-detect", seed=2, imgsz=96).read_bytes())

    assert not engine.is_prepared(path)
    expected = answer(TorchEngine().open(path), bus, PARAMS)
    assert_equal(answer(engine.open(path), bus, PARAMS), expected)
