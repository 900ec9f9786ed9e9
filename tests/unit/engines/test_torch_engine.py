"""Models of one structure share a graph, answer for themselves, and give all memory back."""

import gc
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from serve_app.engines.memory import resident_bytes
from serve_app.engines.torch_engine import TorchEngine
from serve_app.errors import InvalidImageError, InvalidParameterError, ModelBrokenError
from serve_app.types import ImageArray, ImageResult, PredictParams
from tests.support.checkpoints import CheckpointFolder, reference
from tests.support.climb import Climb
from tests.support.models import answer

PARAMS = PredictParams(conf=0.3, max_det=30)


def test_models_of_one_structure_share_a_graph_and_answer_for_themselves(
    checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """In turn, with different pictures' shapes between them."""
    engine = TorchEngine()
    paths = [checkpoints("yolo11n", seed=seed, imgsz=96) for seed in (1, 2)]
    models = [engine.open(path) for path in paths]
    wide = np.ascontiguousarray(bus.transpose(1, 0, 2))

    assert models[0].footprint.shared.keys() == models[1].footprint.shared.keys()
    for picture in (bus, wide, bus):
        for path, model in zip(paths, models, strict=True):
            result = answer(model, picture, PARAMS)
            expected = reference(path, picture, conf=0.3, max_det=30)
            assert result.boxes is not None
            assert len(result.class_id) > 0
            np.testing.assert_allclose(result.boxes, expected.boxes.xyxy.numpy(), atol=0.01)
            np.testing.assert_allclose(result.confidence, expected.boxes.conf.numpy(), atol=1e-5)
    first, second = (answer(model, bus, PARAMS) for model in models)
    assert first.confidence.tolist() != second.confidence.tolist()
    for model in models:
        model.close()


def test_the_graphs_used_last_outlive_their_models(checkpoints: CheckpointFolder) -> None:
    """A few, for the next model of their structure; older ones die at once."""
    engine = TorchEngine()
    first = engine.open(checkpoints("tiny-detect", seed=1))
    first.warm_up()
    first.close()
    for architecture in ("tiny-end2end", "tiny-rtdetr", "yolo11n"):
        engine.open(checkpoints(architecture)).close()

    again = engine.open(checkpoints("tiny-detect", seed=2))

    assert again._opened().profiles, "the graph is the one that was warmed up"
    again.close()
    for task in ("-cls", "-pose", "-obb", "-seg"):
        engine.open(checkpoints(f"yolo11n{task}")).close()
    assert len(engine._graphs) == 4


def test_footprint_counts_the_weights_and_one_graph(checkpoints: CheckpointFolder) -> None:
    """Weights exactly; the graph by a dry run first, then measured by the first warm-up."""
    engine = TorchEngine()
    path = checkpoints("yolo11n", imgsz=160)

    estimate = engine.verify(path)
    model = engine.open(path)
    model.warm_up()

    (signature, graph_bytes), *others = model.footprint.shared.items()
    assert not others
    assert model.footprint.own_bytes == estimate.own_bytes
    # 2.6 M parameters in fp32.
    assert model.footprint.own_bytes == pytest.approx(10.5e6, rel=0.02)
    assert estimate.shared[signature] <= graph_bytes <= 2 * estimate.shared[signature]
    model.close()


def test_weights_are_the_models_own(tmp_path: Path, checkpoints: CheckpointFolder) -> None:
    """Nothing of the checkpoint's file is needed once it is open."""
    path = tmp_path / "model.pt"
    path.write_bytes(checkpoints("tiny-detect").read_bytes())
    model = TorchEngine().open(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    path.unlink()

    model.warm_up()

    model.close()


def test_changed_file_is_verified_again(tmp_path: Path, checkpoints: CheckpointFolder) -> None:
    """A file is known by its path, size and times."""
    engine = TorchEngine()
    path = tmp_path / "model.pt"
    path.write_bytes(checkpoints("tiny-detect").read_bytes())
    before = engine.verify(path)
    path.write_bytes(checkpoints("tiny-end2end").read_bytes())

    assert engine.verify(path) != before


def test_closed_model_cannot_be_used(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """It holds no weights any more, and says so."""
    model = TorchEngine().open(checkpoints("tiny-detect"))
    model.close()

    assert "closed" in repr(model)
    with pytest.raises(RuntimeError, match="closed"):
        answer(model, bus, PARAMS)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (PredictParams(classes=(5,)), "expected 0 to 4"),
        (PredictParams(classes=(-1,)), "expected 0 to 4"),
        (PredictParams(conf=1.5), "conf=1.5"),
        (PredictParams(conf=float("nan")), "conf=nan"),
        (PredictParams(iou=-0.1), "iou=-0.1"),
        (PredictParams(max_det=0), "1 to 300"),
        (PredictParams(max_det=301), "1 to 300"),
        (PredictParams(imgsz=(16, 640)), "32 to 1920"),
        (PredictParams(imgsz=(640, 1921)), "32 to 1920"),
    ],
)
def test_parameters_out_of_range_are_refused(
    params: PredictParams, words: str, checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """The message names the range."""
    model = TorchEngine().open(checkpoints("tiny-detect"))

    with pytest.raises(InvalidParameterError, match=words):
        answer(model, bus, params)
    model.close()


def test_very_long_pictures_are_not_classified(checkpoints: CheckpointFolder) -> None:
    """Scaling their short side up to the input size would take gigabytes."""
    model = TorchEngine().open(checkpoints("yolo11n-cls", imgsz=160))

    assert len(answer(model, np.zeros((2, 300, 3), np.uint8), PARAMS).class_id) == 5
    with pytest.raises(InvalidImageError, match="20000x1"):
        answer(model, np.zeros((1, 20_000, 3), np.uint8), PARAMS)
    model.close()


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (2, 3000)])
@pytest.mark.parametrize("architecture", ["tiny-detect", "tiny-rtdetr", "yolo11n-seg"])
def test_odd_shapes_are_answered(
    architecture: str, shape: tuple[int, int], checkpoints: CheckpointFolder
) -> None:
    """A pixel, a line."""
    model = TorchEngine().open(checkpoints(architecture, imgsz=96))

    result = answer(model, np.full((*shape, 3), 90, np.uint8), PARAMS, annotate=True)

    assert result.shape == shape
    model.close()


def test_failing_model_is_told_apart_from_bad_input(
    checkpoints: CheckpointFolder, bus: ImageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a weird network raises on a sound picture is the model's fault."""
    model = TorchEngine().open(checkpoints("tiny-detect"))
    wrong = {name: tensor.flatten() for name, tensor in model._weights.tensors.items()}
    monkeypatch.setattr(model, "_weights", Mock(tensors=wrong))

    with pytest.raises(ModelBrokenError, match="cannot be run"):
        answer(model, bus, PARAMS)


def test_parameters_reach_ultralytics(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """Thresholds, classes, counts and sizes steer the answer, and only this one."""
    path = checkpoints("yolo11n", imgsz=160)
    model = TorchEngine().open(path)
    plain = answer(model, bus, PredictParams(conf=0.2))
    options = {"conf": 0.5, "iou": 0.4, "max_det": 7, "classes": [int(plain.class_id[0]), 3]}

    classes = (int(plain.class_id[0]), 3)
    params = PredictParams(conf=0.5, iou=0.4, max_det=7, classes=classes, imgsz=(100, 200))
    result = answer(model, bus, params)

    expected = reference(path, bus, imgsz=[100, 200], **options)
    assert result.boxes is not None
    assert 0 < len(result.boxes) <= 7
    np.testing.assert_allclose(result.boxes, expected.boxes.xyxy.numpy(), atol=0.01)
    again = answer(model, bus, PredictParams(conf=0.2))
    assert again.confidence.tolist() == plain.confidence.tolist()
    model.close()


@pytest.mark.alone
def test_memory_is_given_back(checkpoints: CheckpointFolder) -> None:
    """The resident set does not climb over loads and evictions of two models."""
    engine = TorchEngine()
    paths = [checkpoints("tiny-detect", imgsz=64), checkpoints("tiny-end2end", imgsz=64)]
    picture = np.full((48, 64, 3), 127, np.uint8)
    # A model that stayed would add 400 kB per load.
    climb = Climb(limit=4096)

    for cycle in itertools.count():
        model = engine.open(paths[cycle % 2])
        model.warm_up()
        answer(model, picture, PARAMS)
        model.close()
        del model
        if cycle == 40:
            gc.collect()
        if climb.add(resident_bytes()):
            break

    assert climb.settled, f"the resident set climbs by {climb.rates} bytes per load"
    assert climb.spread < 8 * 2**20


def test_pictures_of_one_batch_are_answered_as_alone(
    checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """Each with its own thresholds; only rounding may differ."""
    model = TorchEngine().open(checkpoints("yolo11n", imgsz=96))
    pictures = [bus, np.ascontiguousarray(bus[::-1]), np.full_like(bus, 90)]
    params = [PredictParams(conf=0.3), PredictParams(conf=0.05, max_det=7), PredictParams(conf=0.9)]
    inputs = [model.preprocess(p, how) for p, how in zip(pictures, params, strict=True)]

    together = model.predict(inputs)

    for picture, how, found in zip(pictures, params, together, strict=True):
        alone = answer(model, picture, how)
        assert isinstance(found, ImageResult)
        assert found.class_id.tolist() == alone.class_id.tolist()
        assert found.boxes is not None
        assert alone.boxes is not None
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.01)
    model.close()


def test_error_of_one_picture_is_its_own(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """Its neighbours in the batch are answered."""
    model = TorchEngine().open(checkpoints("tiny-detect", imgsz=96))
    sound = model.preprocess(bus, PARAMS)
    failing = replace(sound, postprocess=Mock(side_effect=InvalidParameterError("too many")))

    first, second = model.predict([sound, failing])

    assert isinstance(first, ImageResult)
    assert isinstance(second, InvalidParameterError)
    model.close()


def test_streams_may_run_one_graph_at_once(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """Different models of it, with different shapes, in four threads: each answers for itself."""
    engine = TorchEngine()
    models = [engine.open(checkpoints("yolo11n", seed=seed, imgsz=96)) for seed in (1, 2)]
    pictures = [bus, np.ascontiguousarray(bus.transpose(1, 0, 2))]
    cases = [(model, picture) for model in models for picture in pictures]
    expected = [answer(model, picture, PARAMS).confidence.tolist() for model, picture in cases]

    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        found = list(threads.map(lambda case: answer(case[0], case[1], PARAMS), cases * 8))

    for index, result in enumerate(found):
        np.testing.assert_allclose(result.confidence, expected[index % 4], atol=1e-5)
    for model in models:
        model.close()


def test_parked_files_are_named_as_long_as_there_is_room(checkpoints: CheckpointFolder) -> None:
    """The last used last; without an arena there are none."""
    first, second = checkpoints("tiny-detect", seed=1), checkpoints("tiny-detect", seed=2)
    own_bytes = TorchEngine().verify(first).own_bytes
    for room, expected in ((0, ()), (1, (second,)), (2, (second, first))):
        engine = TorchEngine(arena_bytes=room * (own_bytes + 4096))
        models = [engine.open(path) for path in (first, second)]
        if room == 2:
            models.append(engine.open(first))
        assert engine.parked() == expected
        for model in models:
            model.close()
