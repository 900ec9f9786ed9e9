"""An ONNX graph neither runs for ever nor takes all memory, and is told so before it runs."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from ultralytics.models import YOLO

from serve_app.engines.onnx_engine import OnnxEngine
from serve_app.engines.onnx_graph import inspect_graph
from serve_app.errors import ModelBrokenError
from tests.support.checkpoints import CheckpointFolder

PIXELS = (1, 3, 64, 64)


def numbers(name: str, values: Sequence[int]) -> TensorProto:
    """Return an initialiser."""
    return onnx.numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def write(path: Path, nodes: Sequence[Any], initializers: Sequence[Any] = ()) -> Path:
    """Write a graph over one picture."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, PIXELS)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path) -> str:
    """Return the reason for which the graph is refused."""
    with pytest.raises(ModelBrokenError) as caught:
        inspect_graph(path)
    return caught.value.detail


def filled(shape: str) -> list[Any]:
    """Return nodes that multiply the picture with the sum of as many ones as `shape` says."""
    return [
        helper.make_node("ConstantOfShape", [shape], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["sum"]),
        helper.make_node("Mul", ["images", "sum"], ["output0"]),
    ]


def test_plain_graph_is_accepted(tmp_path: Path) -> None:
    """It holds what it holds."""
    nodes = [helper.make_node("Add", ["images", "weights"], ["output0"])]
    weights = onnx.numpy_helper.from_array(np.zeros((1, 3, 64, 64), np.float32), "weights")

    assert inspect_graph(write(tmp_path / "model.onnx", nodes, [weights])) == 3 * 64 * 64 * 4


def test_weights_count_as_they_unfold(tmp_path: Path) -> None:
    """Small integers may take one byte in the file, and take eight in memory."""
    nodes = [helper.make_node("Identity", ["images"], ["output0"])]
    zeros = helper.make_tensor("zeros", TensorProto.INT64, [100_000], [0] * 100_000)
    path = write(tmp_path / "model.onnx", nodes, [zeros])

    assert path.stat().st_size < 101_000
    assert inspect_graph(path) == 800_000


@pytest.mark.parametrize("kind", ["Loop", "If"])
def test_graphs_in_graphs_are_refused(kind: str, tmp_path: Path) -> None:
    """A loop may go round 10^12 times."""
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["inner"])], "b", [], [value]
    )
    attributes = {"body": body} if kind == "Loop" else {"then_branch": body, "else_branch": body}
    nodes = [helper.make_node(kind, ["n"], ["output0"], **attributes)]

    assert kind in refusal(write(tmp_path / "model.onnx", nodes, [numbers("n", [10**12])]))


def test_much_made_of_nothing_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime would make it when opening the file."""
    path = write(tmp_path / "model.onnx", filled("shape"), [numbers("shape", [200_000_000])])

    assert "ConstantOfShape" in refusal(path)


def test_much_made_by_computed_shapes_is_refused(tmp_path: Path) -> None:
    """ONNX's own inference, when it follows such shapes, takes far more memory than it finds."""
    nodes = [helper.make_node("Mul", ["side", "side"], ["shape"]), *filled("shape")]

    path = write(tmp_path / "model.onnx", nodes, [numbers("side", [20_000])])

    assert "ConstantOfShape" in refusal(path)


def test_much_made_of_the_pictures_size_is_refused(tmp_path: Path) -> None:
    """The size of a picture is known when the file is opened, too."""
    nodes = [
        helper.make_node("Shape", ["images"], ["size"]),
        helper.make_node("Mul", ["size", "size"], ["shape"]),
        *filled("shape"),
    ]

    assert "ConstantOfShape" in refusal(write(tmp_path / "model.onnx", nodes))


def test_much_made_of_the_picture_is_refused(tmp_path: Path) -> None:
    """More than a GiB in one value."""
    nodes = [helper.make_node("Tile", ["images", "times"], ["output0"])]
    path = write(tmp_path / "model.onnx", nodes, [numbers("times", [1, 1, 200, 200])])

    assert "Tile" in refusal(path)


def test_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    """Nothing but the file itself is ever opened."""
    nodes = [helper.make_node("Add", ["images", "weights"], ["output0"])]
    weights = onnx.numpy_helper.from_array(np.ones(1, np.float32), "weights")
    onnx.external_data_helper.set_external_data(weights, "/etc/passwd")
    weights.ClearField("raw_data")

    assert "other files" in refusal(write(tmp_path / "model.onnx", nodes, [weights]))


def test_unordered_graphs_are_refused(tmp_path: Path) -> None:
    """What is constant is found in one go."""
    nodes = [
        helper.make_node("Identity", ["later"], ["output0"]),
        helper.make_node("Identity", ["images"], ["later"]),
    ]

    assert "corrupt" in refusal(write(tmp_path / "model.onnx", nodes))


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 50])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    """In words, whatever it is that the parser raises."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    if content == b"\xff" * 50:
        assert "corrupt" in refusal(path)
    else:
        with pytest.raises(ModelBrokenError):
            OnnxEngine().verify(path)


@pytest.mark.parametrize("dynamic", [False, True])
def test_exports_with_nms_are_accepted(
    dynamic: bool, tmp_path: Path, checkpoints: CheckpointFolder
) -> None:
    """They compute the most in advance."""
    path = tmp_path / "net-tiny.pt"
    shutil.copy(checkpoints("tiny-detect", imgsz=96), path)
    model: Any = YOLO(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that it fixes
        exported = model.export(
            format="onnx", simplify=False, nms=True, dynamic=dynamic, imgsz=96, verbose=False
        )

    assert inspect_graph(Path(exported)) > 0
