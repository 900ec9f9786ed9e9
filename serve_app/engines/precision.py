"""Which numbers a model computes with, and which parts of it need finer ones.

Half the bits make a forward pass twice as fast where the device has units for them. Not all of a
model bears it: a box is the sum of a cell's place and a few distances, and eight bits do not hold
a place in a large picture. So a head's last layers hand on fp32, and boxes are decoded in it.
"""

import types
from typing import Any, Literal

import torch
from torch import nn
from ultralytics.nn.modules.conv import Conv
from ultralytics.nn.modules.head import Detect, RTDETRDecoder

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the numbers to compute with; `auto` takes what the device does fast.

    Raises:
        ValueError: the device cannot compute with these at all
    """
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU; write auto, bf16 or fp32 for a CPU")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError("this GPU has no bf16; write auto, fp16 or fp32")
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if has_fast_bf16() else torch.float32


def has_fast_bf16() -> bool:
    """Whether this CPU has units for bf16; elsewhere it is emulated, which is slow."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def dtype_for(skeleton: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Return the numbers for this structure: RT-DETR samples pictures at places that need fp32."""
    transformer = any(isinstance(sub, RTDETRDecoder) for sub in skeleton.modules())
    return torch.float32 if transformer else dtype


def fine_tensors(skeleton: nn.Module) -> frozenset[str]:
    """Return the names of the tensors that stay fp32 whatever the precision: those that decode."""
    return frozenset(
        f"{prefix}.dfl.{name}"
        for prefix, sub in skeleton.named_modules()
        if isinstance(sub, Detect) and isinstance(getattr(sub, "dfl", None), nn.Module)
        for name, _ in sub.dfl.named_parameters()
    )


def refine_head(skeleton: Any) -> None:
    """Let the head's last layers hand on fp32, so that all that follows computes in it."""
    head = skeleton.model[-1]
    for layer in _last_layers(head):
        layer.register_forward_hook(_in_fp32)
    if isinstance(head, Detect):
        head.__dict__["_get_decode_boxes"] = types.MethodType(_decode_on_fine_grid, head)


def _last_layers(head: nn.Module) -> list[nn.Module]:
    """Return the bare layers of a head; those inside of blocks have another one after them."""
    inner = {id(sub.conv) for sub in head.modules() if isinstance(sub, Conv)}
    bare = [sub for sub in head.modules() if isinstance(sub, nn.Conv2d | nn.Linear)]
    return [sub for sub in bare if id(sub) not in inner]


def _in_fp32(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()


def _decode_on_fine_grid(head: Detect, preds: dict[str, Any]) -> Any:
    """Decode boxes on grids of fp32: Ultralytics makes them of the feature maps' own numbers."""
    # Only shape, type and device of the maps are looked at here: no number is copied.
    maps = [feat.new_empty(1, dtype=torch.float32).expand(feat.shape) for feat in preds["feats"]]
    with_maps: dict[str, Any] = {**preds, "feats": maps}
    return type(head)._get_decode_boxes(head, with_maps)
