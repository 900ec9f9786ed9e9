"""Traced passes give what the graph gives, for every model and shape, or are not used."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.engines.precision import Precision
from serve_app.engines.torch_engine import TorchEngine
from serve_app.engines.torch_model import TorchModel
from serve_app.engines.traces import TracedRunner
from serve_app.types import ImageArray, PredictParams
from tests.support.checkpoints import CheckpointFolder
from tests.support.models import answer

PARAMS = PredictParams(conf=0.01, max_det=40)
USES = 4
ARCHITECTURES = [
    "tiny-detect",
    "tiny-end2end",
    "tiny-rtdetr",
    "yolov10n",
    "yolo12n",
    "yolo26n",
    "yolo11n-seg",
    "yolo26n-seg",
    "yolo11n-pose",
    "yolo11n-obb",
    "yolo11n-cls",
]


def traced(model: TorchModel) -> TracedRunner:
    """Return what runs the graph of a model."""
    return model._opened()._traced


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_traced_passes_answer_as_the_graph(
    architecture: str, precision: Precision, checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """Traced with one model's weights, run with another's, on pictures that the trace never saw."""
    engine = TorchEngine(precision=precision)
    first, second = (engine.open(checkpoints(architecture, seed=s, imgsz=96)) for s in (1, 2))
    other = np.ascontiguousarray(bus[::-1])
    expected = [answer(model, other, PARAMS) for model in (first, second)]

    for _ in range(USES):
        answer(first, bus, PARAMS)

    assert len(traced(first)._programs) == 1, "it was traced"
    for model, plain in zip((first, second), expected, strict=True):
        found = answer(model, other, PARAMS)
        assert found.class_id.tolist() == plain.class_id.tolist()
        np.testing.assert_allclose(found.confidence, plain.confidence, atol=1e-3)
        for name in ("boxes", "corners", "keypoints"):
            ours, theirs = getattr(found, name), getattr(plain, name)
            if theirs is not None:
                np.testing.assert_allclose(ours, theirs, atol=0.05)
    for model in (first, second):
        model.close()


def test_shapes_are_traced_apart(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """Rare ones not at all, and no more of them than are allowed."""
    model = TorchEngine().open(checkpoints("tiny-detect", imgsz=160))
    runner = traced(model)
    runner._max_programs = 2
    wide = np.ascontiguousarray(bus.transpose(1, 0, 2))
    square = np.ascontiguousarray(bus[:800, :800])
    plain = [answer(model, picture, PARAMS).confidence for picture in (bus, wide, square)]
    assert not runner._programs

    for picture in (bus, wide, square):
        for _ in range(USES):
            answer(model, picture, PARAMS)
    assert len(runner._programs) == 2

    for picture, expected in zip((bus, wide, square), plain, strict=True):
        np.testing.assert_allclose(answer(model, picture, PARAMS).confidence, expected, atol=1e-5)
    model.close()


def test_threads_share_a_program(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """Before, while and after it is traced."""
    engine = TorchEngine()
    models = [engine.open(checkpoints("yolo11n", seed=seed, imgsz=96)) for seed in (1, 2)]
    expected = [answer(model, bus, PARAMS).confidence for model in models]

    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        found = list(threads.map(lambda n: answer(models[n % 2], bus, PARAMS), range(40)))

    assert traced(models[0])._programs
    for number, result in enumerate(found):
        np.testing.assert_allclose(result.confidence, expected[number % 2], atol=1e-4)
    for model in models:
        model.close()


@pytest.mark.parametrize(
    "run",
    [
        lambda tensors, pixels: pixels * tensors["a"] + float(pixels.sum()),
        lambda _, pixels: pixels * 2 if pixels.max() > 0.999 else pixels * 3,
    ],
    ids=["a number of the picture", "a branch on the picture"],
)
def test_what_depends_on_values_is_never_run_traced(run: Any) -> None:  # noqa: ANN401 - untyped
    """A trace would keep the noise's own value for ever."""
    runner = TracedRunner(run, uses_before=2)
    tensors: Mapping[str, torch.Tensor] = {"a": torch.ones(1)}
    pixels = torch.full((1, 3, 2000, 20), 0.5)

    outputs = [runner(tensors, pixels) for _ in range(6)]

    assert not runner._programs
    assert all(torch.equal(output, run(tensors, pixels)) for output in outputs)


def test_what_cannot_be_traced_runs_as_it_is() -> None:
    """An output that is no tensor."""
    runner = TracedRunner(lambda _, pixels: (pixels, "text"), uses_before=1)

    assert [runner({}, torch.zeros(1, 3, 2, 2))[1] for _ in range(3)] == ["text"] * 3


def test_failing_pass_is_told_whether_traced_or_not(
    checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """Weights of a wrong shape raise in a program, too."""
    model = TorchEngine().open(checkpoints("tiny-detect", imgsz=96))
    for _ in range(USES):
        answer(model, bus, PARAMS)
    wrong = {name: tensor.flatten() for name, tensor in model._weights.tensors.items()}

    with pytest.raises(RuntimeError):
        traced(model)(wrong, torch.zeros(1, 3, 96, 96))
    model.close()
