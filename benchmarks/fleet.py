"""Makes a fleet of models on disk: `python -m benchmarks.fleet FOLDER --count 24`.

A fine-tuned model is its base with other numbers in the same places. So each of the fleet is a
copy of a trained model whose weights are disturbed a little, each by its own seed: different
bytes, the same graph, and boxes that non-maximum suppression has to choose from.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from ultralytics.models import YOLO

ROOT = Path(__file__).parents[1]
LIKE = ROOT / "models/fasteners-n/1/model.pt"
NOISE = 1e-3
"""Standard deviation of the disturbance, as a share of each weight."""


def model_name(number: int) -> str:
    """Return the name of a model of the fleet."""
    return f"m{number:02d}"


def model_path(folder: Path, name: str) -> Path:
    """Return where a model's checkpoint lies, in the layout that serve_app's registry reads."""
    return folder / name / "1" / "model.pt"


def make_fleet(folder: Path, count: int, *, like: Path | None = LIKE, imgsz: int = 640) -> None:
    """Write the checkpoints m00, m01... that are not there yet.

    like: a trained checkpoint to vary; None for random weights of yolo11n, which find nothing
    imgsz: the input size that the checkpoints name as theirs, in pixels
    """
    for number in range(count):
        path = model_path(folder, model_name(number))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint = random_weights(number) if like is None else vary(like, number)
            _set_input_size(checkpoint, imgsz)
            unfinished = path.with_suffix(".tmp")
            torch.save(checkpoint, unfinished)
            unfinished.replace(path)


def vary(path: Path, seed: int) -> dict[str, Any]:
    """Return the checkpoint at `path` with its weights disturbed, seed 0 included."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    checkpoint["model"] = checkpoint.get("ema") or checkpoint["model"]
    checkpoint["ema"] = None
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in checkpoint["model"].parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=random) * NOISE
                weight.copy_((weight.float() * (1 + noise)).to(weight.dtype))
    return checkpoint


def random_weights(seed: int) -> dict[str, Any]:
    """Return a checkpoint of yolo11n as it is before any training, in half precision."""
    torch.manual_seed(seed)
    module: Any = YOLO("yolo11n.yaml").model
    module.args = {"task": "detect"}
    return {"epoch": -1, "model": module.half(), "ema": None, "train_args": {"task": "detect"}}


def _set_input_size(checkpoint: dict[str, Any], imgsz: int) -> None:
    checkpoint["train_args"] = {**checkpoint["train_args"], "imgsz": imgsz}
    module = checkpoint["model"]
    arguments = getattr(module, "args", {})
    module.args = {**(arguments if isinstance(arguments, dict) else vars(arguments))}
    module.args["imgsz"] = imgsz


def main() -> None:
    """Make a fleet as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--like", type=Path, default=LIKE, help="a trained checkpoint to vary")
    parser.add_argument("--random", action="store_true", help="random weights instead")
    given = parser.parse_args()
    like = None if given.random else given.like
    make_fleet(given.folder, given.count, like=like, imgsz=given.imgsz)


if __name__ == "__main__":
    main()
