"""Random-weight checkpoints, saved the way Ultralytics saves them."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import serve_app.engines  # noqa: F401 - settles the environment before Ultralytics is imported

import torch  # isort: skip
from ultralytics import YOLO, __version__  # isort: skip
from ultralytics.nn.tasks import RTDETRDetectionModel, yaml_model_load  # isort: skip

BUS = Path(__import__("ultralytics").__file__).parent / "assets" / "bus.jpg"
ZIDANE = BUS.with_name("zidane.jpg")


def build(
    architecture: str | Mapping[str, Any],
    *,
    seed: int = 0,
    imgsz: int = 160,
    classes: int | None = None,
    kpt_shape: tuple[int, int] | None = None,
) -> torch.nn.Module:
    """Return a random net of `architecture` that finds things although it was never trained.

    architecture: a name of Ultralytics such as "yolo11n-seg", or an RT-DETR structure as a mapping
    """
    torch.manual_seed(seed)
    if isinstance(architecture, str):
        config = yaml_model_load(f"{architecture}.yaml")
        if classes is not None:
            config["nc"] = classes
        if kpt_shape is not None:
            config["kpt_shape"] = list(kpt_shape)
        module = _from_config(config, architecture)
    else:
        module = RTDETRDetectionModel(deepcopy(dict(architecture)), verbose=False)
        module.task = "detect"
    _excite(module, seed)
    module.args = {"imgsz": imgsz, "task": module.task}
    return module.eval()


def _from_config(config: dict[str, Any], architecture: str) -> Any:
    model = YOLO(f"{architecture}.yaml")
    kind = type(model.model)
    module = kind(config, verbose=False)
    module.task = model.task
    return module


def _excite(module: Any, seed: int) -> None:
    """Shake batch norms and class biases so that outputs vary and findings have some score."""
    generator = torch.Generator().manual_seed(seed)
    for sub in module.modules():
        if isinstance(sub, torch.nn.BatchNorm2d):
            size = sub.running_mean.shape
            sub.running_mean.copy_(torch.randn(size, generator=generator) * 0.1)
            sub.running_var.copy_(torch.rand(size, generator=generator) * 0.5 + 0.3)
            sub.weight.data.copy_(torch.rand(size, generator=generator) + 0.8)
            sub.bias.data.copy_(torch.randn(size, generator=generator) * 0.2)
    head = module.model[-1]
    for name in ("cv3", "one2one_cv3"):
        for branch in getattr(head, name, None) or ():
            bias = branch[-1].bias
            bias.data.copy_(torch.randn(bias.shape, generator=generator) - 2.0)


def save(module: torch.nn.Module, path: Path, *, stripped: bool = True) -> Path:
    """Save as a training run does: half precision; unstripped with `ema` and optimizer state."""
    module = deepcopy(module)
    content: dict[str, Any] = {
        "date": "2026-01-01T00:00:00",
        "version": __version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "train_args": dict(module.args),  # type: ignore[arg-type]
        "epoch": -1,
    }
    if stripped:
        content |= {"model": module.half(), "ema": None, "optimizer": None}
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
        sum((p.square().sum() for p in module.parameters()), torch.tensor(0.0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        content |= {"model": None, "ema": deepcopy(module).half(), "optimizer": optimizer.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def checkpoint(path: Path, architecture: str | Mapping[str, Any], **options: Any) -> Path:
    """Build and save in one go; see `build`."""
    return save(build(architecture, **options), path)
