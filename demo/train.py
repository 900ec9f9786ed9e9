"""Command line: draw the scenes, train one demonstration model, measure and publish it."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Ultralytics reads these when it is imported; training must not reach for the network.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

import torch
import yaml
from ultralytics import YOLO  # type: ignore[attr-defined]
from ultralytics.engine import trainer
from ultralytics.nn.tasks import torch_safe_load

from demo.checkpoint import publish
from demo.dataset import CONFIG, write_config, write_split
from demo.parts import classes

MODELS = Path(__file__).resolve().parent.parent / "models"
ARCHITECTURE = "yolo11n"
TRAIN_SEED, CHECK_SEED, EVALUATION_SEED = 1, 2, 3
CHECK_SCENES, EVALUATION_SCENES = 48, 200
LICENCE = "AGPL-3.0"


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    `start` names the published model it begins from. Weights move once in `step` pictures: smaller
    steps learn more from few pictures. The rate falls to nothing once in each of the `cycles` that
    share the epochs.
    """

    line: str
    description: str
    imgsz: int
    scenes: int
    epochs: int
    rate: float
    start: str | None = None
    step: int = 64
    cycles: int = 1


RECIPES: dict[str, Recipe] = {
    "fasteners-n": Recipe(
        "fasteners", "Washers, nuts, bolts and pins on a line.", 320, 1600, 11, 0.002
    ),
    "components-n": Recipe(
        "components",
        "Resistors, capacitors, chips and LEDs on a line.",
        *(320, 900, 8, 0.001),
        start="fasteners-n",
        step=16,
    ),
    "codes-n": Recipe(
        "codes",
        "QR codes, bar codes and Data Matrix codes on a line.",
        *(320, 900, 5, 0.001),
        start="fasteners-n",
        step=16,
    ),
    "fasteners-s": Recipe(
        "fasteners",
        "Washers, nuts, bolts and pins on a line, in twice the resolution.",
        *(640, 400, 8, 0.0008),
        start="fasteners-n",
        step=16,
        cycles=2,
    ),
}


def model_path(name: str) -> Path:
    """Return where the published weights of the model `name` lie."""
    return MODELS / name / "1" / "model.pt"


def draw_data(folder: Path, recipe: Recipe) -> Path:
    """Draw the three splits, of seeds that share no scene, and return their description.

    What an earlier run drew into the same folder is taken as it is.
    """
    if (folder / CONFIG).exists():
        return folder / CONFIG
    splits = {
        "train": (TRAIN_SEED, recipe.scenes),
        "val": (CHECK_SEED, CHECK_SCENES),
        "test": (EVALUATION_SEED, EVALUATION_SCENES),
    }
    for split, (seed, count) in splits.items():
        write_split(folder, split, recipe.line, seed, count)
    return write_config(folder, recipe.line)


def _half_precision(_: bool, device: str = "cpu") -> torch.autocast:
    """Compute in bfloat16 whatever the device: half the time on processors that have it.

    Ultralytics' own switch knows half precision on GPUs only.
    """
    return torch.autocast(device, dtype=torch.bfloat16)


def train(recipe: Recipe, data: Path, folder: Path, device: str, threads: int) -> Path:
    """Train on the drawn scenes and return the checkpoint of the last epoch.

    A run that was cut short in the same folder goes on after its last whole epoch.
    """
    trainer.autocast = _half_precision  # type: ignore[attr-defined,assignment]
    source = str(model_path(recipe.start)) if recipe.start else f"{ARCHITECTURE}.yaml"
    for cycle in range(recipe.cycles):
        last = folder / f"cycle-{cycle}" / "weights" / "last.pt"
        if not _is_finished(last):
            _train_cycle(recipe, source, data, last, device, threads)
        source = str(last)
    return last


def _is_finished(checkpoint: Path) -> bool:
    if not checkpoint.exists():
        return False
    content, _ = torch_safe_load(checkpoint, safe_only=True)  # type: ignore[no-untyped-call]
    return bool(content["epoch"] == -1)  # what Ultralytics writes when it strips the last epoch


def _train_cycle(
    recipe: Recipe, source: str, data: Path, last: Path, device: str, threads: int
) -> None:
    run = last.parent.parent
    epochs = recipe.epochs // recipe.cycles
    model = YOLO(source)
    # Ultralytics leaves one core free for loaders, which do not run beside training on a CPU.
    model.add_callback("on_train_start", lambda _: torch.set_num_threads(threads))
    model.train(
        data=str(data), imgsz=recipe.imgsz, epochs=epochs, device=device,
        project=str(run.parent), name=run.name, exist_ok=True, seed=TRAIN_SEED, deterministic=True,
        batch=16, nbs=recipe.step, workers=1, cache="ram", plots=False, val=False, verbose=False,
        # Without a warm-up of its rate a head that is new to its classes unlearns the rest.
        optimizer="AdamW", lr0=recipe.rate, cos_lr=True, warmup_epochs=1, warmup_bias_lr=0.0,
        amp=False, channels_last=True, resume=str(last) if last.exists() else False,
        # Scenes come in every turn already, and a mirrored code is no code.
        mosaic=0.4, close_mosaic=max(2, epochs // 4), fliplr=0.0, scale=0.3, hsv_h=0.01,
    )  # fmt: skip


def train_args(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that the published file keeps; prediction takes its size from them."""
    return {
        "task": "detect",
        "mode": "train",
        "model": f"{ARCHITECTURE}.yaml",
        "data": f"{recipe.line}.yaml",
        "imgsz": recipe.imgsz,
        "epochs": recipe.epochs,
        "batch": 16,
        "seed": TRAIN_SEED,
        "single_cls": False,
    }


def evaluate(weights: Path, data: Path, folder: Path, imgsz: int, device: str) -> dict[str, Any]:
    """Measure the published file on the held-out scenes."""
    found = YOLO(str(weights)).val(
        data=str(data), split="test", imgsz=imgsz, batch=8, device=device, workers=0,
        project=str(folder), name="evaluation", exist_ok=True, plots=False, verbose=False,
    )  # fmt: skip
    return {
        "scenes": EVALUATION_SCENES,
        "seed": EVALUATION_SEED,
        "map50": round(float(found.box.map50), 4),
        "map50_95": round(float(found.box.map), 4),
    }


def card(recipe: Recipe, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the model's card."""
    training = {
        "data": f"demo/scenes.py, seed {TRAIN_SEED}",
        "scenes": recipe.scenes,
        "epochs": recipe.epochs,
        "start": recipe.start or "scratch",
    }
    return {
        "description": recipe.description,
        "architecture": ARCHITECTURE,
        "task": "detect",
        "classes": classes(recipe.line),
        "imgsz": recipe.imgsz,
        "training": training,
        "evaluation": evaluation,
        "license": LICENCE,
    }


def make(name: str, folder: Path, device: str, threads: int) -> dict[str, Any]:
    """Draw, train, publish and measure the model `name`; returns what was measured."""
    recipe, target = RECIPES[name], model_path(name)
    started = time.monotonic()
    data = draw_data(folder / "data", recipe)
    drawn = time.monotonic()
    trained = train(recipe, data, folder, device, threads)
    finished = time.monotonic()
    publish(trained, target, train_args(recipe))
    evaluation = evaluate(target, data, folder, recipe.imgsz, device)
    text = yaml.safe_dump(card(recipe, evaluation), sort_keys=False, default_flow_style=None)
    target.with_name("model.yaml").write_text(text, encoding="utf-8")
    print(f"{name}: drawn in {drawn - started:.0f} s, trained in {finished - drawn:.0f} s")
    return evaluation


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(RECIPES))
    parser.add_argument("--device", default="cpu", help="device as Ultralytics names it")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="keep data and logs here")
    args = parser.parse_args()
    for name in args.names:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (args.folder or Path(temporary)).resolve() / name
            print(f"{name}: {make(name, folder, args.device, args.threads)}")


if __name__ == "__main__":
    main()
