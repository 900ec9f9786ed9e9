"""ONNX files are believed only as far as Ultralytics' own metadata goes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from serve_app.engines.memory import release_free_memory, resident_bytes
from serve_app.engines.onnx_engine import OnnxEngine
from serve_app.engines.onnx_metadata import parse_metadata
from serve_app.errors import InvalidParameterError, ModelBrokenError
from serve_app.types import ImageArray, PredictParams, Task
from tests.support.models import answer

METADATA = {
    "task": "detect",
    "names": "{0: 'nut', 1: 'bolt'}",
    "stride": "32",
    "imgsz": "[160, 96]",
    "args": "{'dynamic': False, 'nms': False}",
    "end2end": "False",
}


@pytest.fixture
def edited(exported: Path, tmp_path: Path) -> Callable[[dict[str, str | None]], Path]:
    """Return a function that makes a copy with other metadata; None removes a field."""

    def edit(changes: dict[str, str | None]) -> Path:
        model = onnx.load(str(exported))
        fields = {entry.key: entry.value for entry in model.metadata_props} | changes
        del model.metadata_props[:]
        for key, value in fields.items():
            if value is not None:
                model.metadata_props.add(key=key, value=value)
        path = tmp_path / "model.onnx"
        onnx.save(model, str(path))
        return path

    return edit


@pytest.mark.alone
def test_footprint_is_measured(exported: Path, bus: ImageArray) -> None:
    """Together, models never say that they hold less than the process grew by."""
    engine = OnnxEngine()
    estimate = engine.verify(exported)
    assert estimate.own_bytes >= exported.stat().st_size
    release_free_memory()
    before = resident_bytes()

    models = []
    for _ in range(8):
        model = engine.open(exported)
        assert model.footprint == estimate
        model.warm_up()
        assert model.profile.expected_s(1) > 0, "a slow one would be taken for a hung one"
        models.append(model)

    release_free_memory()
    growth = resident_bytes() - before
    assert sum(opened.footprint.own_bytes for opened in models) >= 0.9 * growth
    assert model.footprint.shared == {}
    assert len(answer(model, bus, PredictParams(conf=0.01)).class_id) > 0
    for opened in models:
        opened.close()
    assert "closed" in repr(model)
    with pytest.raises(RuntimeError, match="closed"):
        model.warm_up()


def test_fixed_shape_takes_its_own_size_only(exported: Path, bus: ImageArray) -> None:
    """The message names the size that it takes."""
    model = OnnxEngine().open(exported)

    answer(model, bus, PredictParams(imgsz=(96, 96)))
    with pytest.raises(InvalidParameterError, match="takes 96x96 only"):
        answer(model, bus, PredictParams(imgsz=(128, 96)))
    model.close()


def test_session_neither_spins_nor_hoards() -> None:
    """The options that keep idle models idle and small."""
    options = OnnxEngine(threads=3)._options()

    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 3
    assert not options.enable_cpu_mem_arena


@pytest.mark.parametrize("content", [b"", b"not onnx", os.urandom(5000)])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    """With what is missing and what to do."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(ModelBrokenError, match="metadata"):
        OnnxEngine().verify(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_files_are_refused(share: float, exported: Path, tmp_path: Path) -> None:
    """The metadata are at the end."""
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.read_bytes()[: int(exported.stat().st_size * share)])

    with pytest.raises(ModelBrokenError):
        OnnxEngine().verify(path)
    with pytest.raises(ModelBrokenError):
        OnnxEngine().open(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": None}, "was not exported by Ultralytics"),
        ({"task": "depth"}, "not served; supported tasks are detect"),
        ({"names": "__import__('os').system('true')"}, "malformed"),
        ({"names": "{1: 'a', 7: 'b'}"}, "malformed"),
        ({"stride": "many"}, "malformed"),
        ({"imgsz": "(" * 10_000}, "malformed"),
        ({"names": "'" + "x" * 2**20 + "'"}, "malformed"),
    ],
)
def test_malformed_metadata_are_refused(
    changes: dict[str, str | None],
    words: str,
    edited: Callable[[dict[str, str | None]], Path],
) -> None:
    """Read as literals, never as code."""
    with pytest.raises(ModelBrokenError, match=words):
        OnnxEngine().verify(edited(changes))


def test_sound_metadata_with_a_broken_graph_are_refused(exported: Path, tmp_path: Path) -> None:
    """What only opening tells."""
    model = onnx.load(str(exported))
    next(node for node in model.graph.node if node.op_type == "Conv").op_type = "NoSuchOperator"
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))

    OnnxEngine().verify(path)
    with pytest.raises(ModelBrokenError, match="unknown operators"):
        OnnxEngine().open(path)


def test_batched_exports_are_refused(exported: Path, tmp_path: Path) -> None:
    """A fixed batch other than one."""
    model = onnx.load(str(exported))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))

    with pytest.raises(ModelBrokenError, match="batch=1|corrupt"):
        OnnxEngine().open(path)


def test_metadata_are_understood() -> None:
    """Also of end-to-end heads, embedded NMS, keypoints and RT-DETR."""
    plain = parse_metadata(METADATA)
    assert plain.info.task is Task.DETECT
    assert dict(plain.info.names) == {0: "nut", 1: "bolt"}
    assert plain.info.imgsz == (160, 96)
    assert not plain.dynamic
    assert not plain.end2end

    assert parse_metadata(METADATA | {"end2end": "True"}).end2end
    assert parse_metadata(METADATA | {"args": "{'nms': True, 'dynamic': True}"}).end2end
    assert parse_metadata(METADATA | {"args": "{'dynamic': True}"}).dynamic
    assert parse_metadata(METADATA | {"head": "RTDETRDecoder"}).rtdetr
    assert parse_metadata(METADATA | {"kpt_shape": "[17, 3]"}).kpt_shape == (17, 3)


def test_dark_picture_has_no_findings(exported: Path) -> None:
    """An answer without findings keeps its arrays' shapes."""
    model = OnnxEngine().open(exported)

    result = answer(model, np.zeros((50, 60, 3), np.uint8), PredictParams(conf=0.999))

    assert result.shape == (50, 60)
    assert result.boxes is not None
    assert result.boxes.shape == (0, 4)
    assert result.confidence.shape == (0,)
    model.close()
