"""Rewrites a training checkpoint so that it holds weights and neutral facts only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.tasks import torch_safe_load

MAX_BYTES = 6_000_000


def publish(trained: Path, target: Path, train_args: dict[str, Any]) -> None:
    """Write the fp16 weights of `trained` to `target` with `train_args` as the only settings.

    Ultralytics stores the machine's folders, the date and the repository in a checkpoint; none of
    them belongs in a file that others download.
    """
    loaded, _ = torch_safe_load(trained, safe_only=True)  # type: ignore[no-untyped-call]
    model = (loaded.get("ema") or loaded["model"]).half().eval()
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.criterion = None
    model.args = dict(train_args)
    model.yaml["yaml_file"] = train_args["model"]
    for name in ("pt_path", "yaml_file"):
        if hasattr(model, name):
            delattr(model, name)
    kept = {key: loaded[key] for key in ("version", "license", "docs") if key in loaded}
    content = {"epoch": -1, "model": model, "ema": None, "optimizer": None, "updates": None}
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "train_args": dict(train_args), **kept}, target)
    check(target)


def check(path: Path) -> None:
    """Refuse a published file that is too large, names a folder or does not load safely."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path.name} has {size} bytes, more than {MAX_BYTES}")
    content, _ = torch_safe_load(path, safe_only=True)  # type: ignore[no-untyped-call]
    model = content["model"]
    rest = {key: value for key, value in content.items() if key != "model"}
    facts = {"model": {key: value for key, value in vars(model).items() if key[0] != "_"}}
    found = [text for text in _texts([rest, facts]) if _is_path(text)]
    if found:
        raise ValueError(f"{path.name} names folders: {found}")


def _is_path(text: str) -> bool:
    return not text.startswith("http") and ("\\" in text or text.startswith(("/", "~")))


def _texts(value: object) -> list[str]:
    """Return every string inside nested dictionaries and sequences."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, (list, tuple, set)):
        return [text for part in value for text in _texts(part)]
    return [str(value)] if isinstance(value, (str, Path)) else []
