"""The same engine on a GPU: skipped without one. It needs neither Ray nor HTTP."""

import numpy as np
import pytest
import torch

from serve_app.engines.devices import device_total_bytes, resolve_device
from serve_app.engines.torch_engine import TorchEngine
from serve_app.types import ImageArray, PredictParams
from tests.support.checkpoints import CheckpointFolder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PARAMS = PredictParams(conf=0.3, max_det=30)


def test_auto_takes_the_gpu() -> None:
    """Where there is a GPU, models run on it, and its memory is the device's."""
    device = resolve_device("auto")
    assert device == "cuda:0"
    assert device_total_bytes(device) == torch.cuda.get_device_properties(0).total_memory


@pytest.mark.parametrize("task", ["", "-seg", "-pose", "-obb", "-cls"])
def test_answers_are_those_of_the_cpu(
    task: str, checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """Same classes in the same order; boxes and confidences within rounding (no TF32)."""
    path = checkpoints(f"yolo11n{task}", imgsz=224)
    results = []
    for device in ("cpu", "cuda:0"):
        model = TorchEngine(device).open(path)
        model.warm_up()
        results.append(model.predict(bus, PARAMS))
        model.close()
    on_cpu, on_gpu = results
    np.testing.assert_array_equal(on_cpu.class_id, on_gpu.class_id)
    np.testing.assert_allclose(on_cpu.confidence, on_gpu.confidence, atol=1e-3)
    if on_cpu.boxes is not None and on_gpu.boxes is not None:
        np.testing.assert_allclose(on_cpu.boxes, on_gpu.boxes, atol=0.5)


def test_eviction_returns_the_memory(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """After 200 loads and evictions the allocator holds what it held after the first few."""
    engine = TorchEngine("cuda:0")
    paths = [checkpoints("tiny-detect", seed=seed) for seed in (1, 2)]
    reserved = []
    for cycle in range(200):
        model = engine.open(paths[cycle % 2])
        model.warm_up()
        assert model.footprint.own_bytes > 0
        model.predict(bus, PARAMS)
        model.close()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= max(reserved[:10])
