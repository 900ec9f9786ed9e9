"""Half the bits where the device is fast with them; boxes are decoded in fp32 all the same."""

import numpy as np
import pytest
import torch

from serve_app.engines.precision import has_fast_bf16, resolve_precision
from serve_app.engines.torch_engine import TorchEngine
from serve_app.types import ImageArray, PredictParams
from tests.support.checkpoints import CheckpointFolder
from tests.support.models import answer

CPU = torch.device("cpu")


def test_auto_takes_what_the_device_does_fast() -> None:
    """A GPU halves; a CPU only with units for it."""
    assert resolve_precision("auto", torch.device("cuda")) == torch.float16
    expected = torch.bfloat16 if has_fast_bf16() else torch.float32
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("fp32", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16


def test_cpu_has_no_fp16() -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match="auto, bf16 or fp32"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize("architecture", ["yolo11n", "yolo26n", "yolo11n-obb", "yolo11n-pose"])
def test_boxes_are_decoded_on_fine_grids(
    architecture: str, checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """On a large picture: eight bits would put a box's place off by pixels."""
    model = TorchEngine(precision="bf16").open(checkpoints(architecture))
    model_input = model.preprocess(bus, PredictParams(imgsz=(1280, 1280)))

    with torch.inference_mode():
        raw = model._forward(model_input.pixels)
    boxes = raw if isinstance(raw, torch.Tensor) else raw[0]

    assert boxes.dtype == torch.float32
    coarse = boxes.bfloat16().float()
    assert (boxes != coarse).float().mean() > 0.5, "no sum was rounded to eight bits"


def test_rtdetr_stays_in_fp32(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """It samples feature maps at places that eight bits cannot tell apart."""
    path = checkpoints("tiny-rtdetr", imgsz=96)
    params = PredictParams(conf=0.01)
    fine, coarse = (TorchEngine(precision=p).open(path) for p in ("fp32", "bf16"))

    assert coarse.footprint.own_bytes == fine.footprint.own_bytes
    np.testing.assert_array_equal(
        answer(coarse, bus, params).boxes, answer(fine, bus, params).boxes
    )
