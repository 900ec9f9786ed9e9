"""OpenVINO answers as Ultralytics does, and imports what it compiled once."""

import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from serve_app.engines import compiled
from serve_app.engines.compiled import CompiledError, CompiledUnreadableError, read_compiled
from serve_app.engines.openvino_engine import OpenVinoEngine
from serve_app.engines.store import ArtifactStore
from serve_app.errors import ModelBrokenError
from serve_app.types import ImageArray, ModelFormat, PredictParams
from tests.support.checkpoints import CheckpointFolder, reference
from tests.support.models import answer
from tests.support.parity import assert_parity

PARAMS = PredictParams(conf=0.3, max_det=30)
MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """A folder for compiled models."""
    return ArtifactStore(tmp_path / "openvino", 2**30)


def test_converter_reports_to_nobody() -> None:
    """OpenVINO has taken its own stand-in for the package that would use the network."""
    from openvino.tools.ovc import convert_impl, telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert convert_impl.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert sys.modules["openvino_telemetry"] is None


@pytest.mark.parametrize(
    "architecture",
    [
        *("yolo11n", "yolo26n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo11n-cls"),
        "tiny-rtdetr",
    ],
)
def test_checkpoints_are_answered_as_by_ultralytics(
    architecture: str, checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """A portrait, a landscape and a small input of one model that was traced once, for a square."""
    path = checkpoints(architecture, imgsz=160)
    model = OpenVinoEngine(ModelFormat.PT).open(path)
    conf = 0.01 if "rtdetr" in architecture else 0.3
    params = PredictParams(conf=conf, max_det=30)

    for picture in (bus, np.ascontiguousarray(bus.transpose(1, 0, 2))):
        result = answer(model, picture, params)
        assert len(result.class_id) > 0
        assert_parity(result, reference(path, picture, conf=conf, max_det=30))
    small = answer(model, bus, PredictParams(conf=conf, max_det=30, imgsz=(64, 64)))
    assert_parity(small, reference(path, bus, conf=conf, max_det=30, imgsz=64))
    model.close()


@pytest.mark.parametrize("name", ["fasteners-n", "codes-n"])
def test_trained_models_keep_their_boxes(name: str) -> None:
    """Within a hundredth of a pixel of Ultralytics, where something is found."""
    import cv2

    path = MODELS / name / "1" / "model.pt"
    picture: Any = cv2.imread(str(MODELS.parent / "demo/samples" / f"{name[:-2]}-1.jpg"))
    model = OpenVinoEngine(ModelFormat.PT).open(path)

    result = answer(model, picture, PredictParams())

    expected = reference(path, picture)
    assert len(result.class_id) > 0
    found = expected.boxes if expected.obb is None else expected.obb
    assert result.class_id.tolist() == found.cls.int().tolist()
    np.testing.assert_allclose(result.confidence, found.conf.numpy(), atol=1e-4)
    if expected.obb is None:
        assert result.boxes is not None
        np.testing.assert_allclose(result.boxes, expected.boxes.xyxy.numpy(), atol=0.01)
    model.close()


def test_batches_answer_as_alone(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """Pictures of one shape share a pass."""
    model = OpenVinoEngine(ModelFormat.PT).open(checkpoints("yolo11n", imgsz=96))
    inputs = [model.preprocess(picture, PARAMS) for picture in (bus, bus[::-1].copy())]

    together = model.predict(inputs)
    alone = [model.predict([one])[0] for one in inputs]

    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)  # type: ignore[union-attr,arg-type]
    model.close()


def test_several_streams_run_one_model(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """Each keeps its own answer."""
    model = OpenVinoEngine(ModelFormat.PT, threads=2).open(checkpoints("yolo11n", imgsz=96))
    pictures = [bus, bus[:, ::-1].copy(), bus[::-1].copy()]
    expected = [answer(model, picture, PARAMS).confidence for picture in pictures]
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(6):
            found = answer(model, pictures[index], PARAMS).confidence
            if found.shape != expected[index].shape or np.abs(found - expected[index]).max() > 1e-4:
                wrong.append(index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    model.close()


def test_compiled_model_is_imported(
    checkpoints: CheckpointFolder,
    bus: ImageArray,
    store: ArtifactStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By other processes too, with other threads, without reading the checkpoint again."""
    path = checkpoints("yolo11n-cls", imgsz=96)
    engine = OpenVinoEngine(ModelFormat.PT, store=store)
    plain = answer(engine.open(path), bus, PARAMS)
    estimate = engine.verify(path)

    assert not engine.is_prepared(path)
    assert engine.prepare(path)
    assert not engine.prepare(path)

    later = OpenVinoEngine(ModelFormat.PT, threads=2, store=store)
    monkeypatch.setattr(later, "_compile", None)
    assert later.is_prepared(path)
    assert later.verify(path) == estimate
    model = later.open(path)
    with model._requests.one() as request:
        assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 2
    model.warm_up()
    again = answer(model, bus, PARAMS)
    assert again.class_id.tolist() == plain.class_id.tolist()
    np.testing.assert_allclose(again.confidence, plain.confidence, atol=1e-6)
    model.close()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "other version"])
def test_damaged_compiled_model_is_made_anew(
    damage: str, checkpoints: CheckpointFolder, bus: ImageArray, store: ArtifactStore
) -> None:
    """It is never served."""
    from dataclasses import replace

    from serve_app.engines.compiled import write_compiled

    path = checkpoints("tiny-detect", imgsz=96)
    engine = OpenVinoEngine(ModelFormat.PT, store=store)
    engine.prepare(path)
    (kept,) = store.folder.glob("*.safetensors")
    content = bytearray(kept.read_bytes())
    if damage == "truncated":
        kept.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-1000] ^= 1
        kept.write_bytes(content)
    elif damage == "foreign":
        kept.write_bytes(os.urandom(1000))
    else:
        compiled = read_compiled(kept)
        write_compiled(kept, replace(compiled, blob=np.zeros(1000, np.uint8)))
    if damage != "other version":
        with pytest.raises(CompiledError):
            read_compiled(kept)

    model = OpenVinoEngine(ModelFormat.PT, store=store).open(path)

    assert answer(model, bus, PARAMS).shape == bus.shape[:2]
    assert not kept.exists()
    assert engine.prepare(path)
    model.close()


@pytest.mark.parametrize("moment", ["_inspect", "_compile"])
def test_file_replaced_meanwhile_is_not_mistaken(
    moment: str,
    checkpoints: CheckpointFolder,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is kept: it would be taken for the other file ever after."""
    path = tmp_path / "model.pt"
    path.write_bytes(checkpoints("tiny-detect", seed=1, imgsz=96).read_bytes())
    other = tmp_path / "other.pt"
    other.write_bytes(checkpoints("tiny-detect", seed=2, imgsz=96).read_bytes())
    engine = OpenVinoEngine(ModelFormat.PT, store=store)
    proceed = getattr(engine, moment)

    def replace_and_proceed(path: Path) -> object:
        done = proceed(path)
        os.replace(other, path)
        return done

    with monkeypatch.context() as patched:
        patched.setattr(engine, moment, replace_and_proceed)
        assert not engine.prepare(path)

    assert store.used_bytes == 0
    assert engine.prepare(path)


def test_compiled_model_that_cannot_be_read_now_is_kept(
    checkpoints: CheckpointFolder, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk says nothing of its content."""
    path = checkpoints("tiny-detect", imgsz=96)
    engine = OpenVinoEngine(ModelFormat.PT, store=store)
    engine.prepare(path)
    with monkeypatch.context() as patched:
        patched.setattr(store, "find", lambda _name: Path("/proc/self/mem"))
        engine.open(path).close()

    assert engine.is_prepared(path)


@pytest.mark.parametrize("path", ["/proc/self/mem", "/nowhere/at/all"])
def test_what_cannot_be_read_is_not_called_damaged(path: str) -> None:
    """It is told apart from what is."""
    with pytest.raises(CompiledUnreadableError):
        read_compiled(Path(path))


def test_lack_of_memory_spoils_no_compiled_model(
    checkpoints: CheckpointFolder, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on reading it, nor on importing it."""
    path = checkpoints("tiny-detect", imgsz=96)
    OpenVinoEngine(ModelFormat.PT, store=store).prepare(path)

    def fail(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    def fail_inside(*_arguments: object) -> None:
        raise RuntimeError("not enough memory")

    engine = OpenVinoEngine(ModelFormat.PT, store=store)
    with monkeypatch.context() as patched:
        patched.setattr(compiled, "safe_open", fail)
        with pytest.raises(MemoryError):
            engine.open(path)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_core", SimpleNamespace(import_model=fail_inside))
        patched.setattr(engine, "_name", lambda _path: next(store.folder.iterdir()).name)
        with pytest.raises(RuntimeError, match="memory"):
            engine.open(path)

    assert engine.is_prepared(path)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("description", "[" * 100_000),
        ("description", '{"imgsz": [Infinity, 1], "kpt_shape": null, "task": "detect"}'),
        ("own_bytes", "many"),
    ],
)
def test_hostile_compiled_model_is_refused(
    name: str, word: str, checkpoints: CheckpointFolder, store: ArtifactStore
) -> None:
    """Checksums are no signatures: whoever can write the folder can make them."""
    path = checkpoints("tiny-detect", imgsz=96)
    OpenVinoEngine(ModelFormat.PT, store=store).prepare(path)
    (kept,) = store.folder.glob("*.safetensors")
    forge_compiled(kept, {})
    read_compiled(kept)
    forge_compiled(kept, {name: word})

    with pytest.raises(CompiledError):
        read_compiled(kept)


def forge_compiled(kept: Path, words: dict[str, str]) -> None:
    """Write other words beside the compiled model, with the checksum that they should have."""
    tensors = load_file(kept)
    data = kept.read_bytes()
    content = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    content.update(words)
    content["checksum"] = compiled._checksum(content, tensors["compiled"])
    save_file(tensors, kept, metadata=content)


def test_pipe_is_no_compiled_model(tmp_path: Path) -> None:
    """It is not waited for."""
    os.mkfifo(tmp_path / "pipe.safetensors")

    with pytest.raises(CompiledError, match="no regular file"):
        read_compiled(tmp_path / "pipe.safetensors")


def test_footprint_is_measured_and_bounded(checkpoints: CheckpointFolder) -> None:
    """Within the plausible."""
    engine = OpenVinoEngine(ModelFormat.PT)
    path = checkpoints("yolo11n", imgsz=160)
    estimate = engine.verify(path)
    model = engine.open(path)
    assert model.footprint == estimate

    model.warm_up()

    assert 9e6 <= model.footprint.own_bytes <= 2 * estimate.own_bytes
    assert model.footprint.shared == {}
    assert model.profile.seconds
    model.close()


def test_idle_models_stay_idle_and_small() -> None:
    """What a model is compiled with."""
    config = OpenVinoEngine(ModelFormat.PT, threads=3)._config

    assert config["INFERENCE_NUM_THREADS"] == 3
    assert config["NUM_STREAMS"] == "1"
    assert config["INFERENCE_PRECISION_HINT"] == "f32"
    assert config["ENABLE_CPU_PINNING"] is False
    assert 0 < int(str(config["CPU_RUNTIME_CACHE_CAPACITY"])) < 1000


def test_closed_model_cannot_be_used(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """It holds nothing any more, and says so."""
    model = OpenVinoEngine(ModelFormat.PT).open(checkpoints("tiny-detect"))
    prepared = model.preprocess(bus, PARAMS)
    model.close()

    assert "closed" in repr(model)
    with pytest.raises(RuntimeError, match="closed"):
        model.predict([prepared])
    with pytest.raises(RuntimeError, match="closed"):
        model.warm_up()


@pytest.mark.parametrize("model_format", list(ModelFormat))
def test_other_files_are_refused(model_format: ModelFormat, tmp_path: Path) -> None:
    """Before OpenVINO sees them."""
    path = tmp_path / f"model.{model_format}"
    path.write_bytes(os.urandom(5000))
    engine = OpenVinoEngine(model_format)

    for refuse in (engine.verify, engine.open):
        with pytest.raises(ModelBrokenError):
            refuse(path)


def test_onnx_is_answered_as_by_onnx_runtime(exported: Path, bus: ImageArray) -> None:
    """An export with a fixed shape of 96 x 96, one picture at a time."""
    from serve_app.engines.onnx_engine import OnnxEngine

    params = PredictParams(conf=0.01)
    model = OpenVinoEngine(ModelFormat.ONNX).open(exported)
    expected = answer(OnnxEngine().open(exported), bus, params)
    model.warm_up()

    found = answer(model, bus, params)

    assert len(found.class_id) > 0
    assert found.boxes is not None
    assert expected.boxes is not None
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    assert model.profile.max_batch == 1
    assert model.profile.expected_s(1) > 0, "a slow one would be taken for a hung one"
    model.close()


def test_unknown_operator_is_refused(exported: Path, tmp_path: Path) -> None:
    """What only compiling tells."""
    graph = onnx.load(str(exported))
    next(node for node in graph.graph.node if node.op_type == "Conv").op_type = "NoSuchOperator"
    path = tmp_path / "model.onnx"
    onnx.save(graph, str(path))

    with pytest.raises(ModelBrokenError, match="OpenVINO"):
        OpenVinoEngine(ModelFormat.ONNX).open(path)
