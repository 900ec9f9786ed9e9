"""Writes drawn scenes to disk in the folder layout that Ultralytics trains from."""

from __future__ import annotations

from pathlib import Path

import cv2
import yaml

from demo.parts import classes
from demo.scenes import Scene, draw_scene

CONFIG = "data.yaml"  # written last: where it lies, the data set is complete
SEED_STRIDE = 1_000_000  # scene seeds of two data set seeds never meet


def label_lines(scene: Scene, names: list[str]) -> list[str]:
    """Return one `class x y w h` line per label, relative to the picture's size."""
    height, width = scene.image.shape[:2]
    lines = []
    for name, (x0, y0, x1, y1) in scene.labels:
        centre = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height)
        size = ((x1 - x0) / width, (y1 - y0) / height)
        lines.append(" ".join([str(names.index(name)), *(f"{v:.6f}" for v in centre + size)]))
    return lines


def write_split(folder: Path, split: str, line: str, seed: int, count: int) -> None:
    """Draw `count` scenes and write them below `folder`."""
    images, labels = folder / "images" / split, folder / "labels" / split
    for path in (images, labels):
        path.mkdir(parents=True, exist_ok=True)
    names = classes(line)
    for number in range(count):
        scene = draw_scene(line, seed * SEED_STRIDE + number)
        cv2.imwrite(str(images / f"{number:05d}.png"), scene.image)
        text = "\n".join(label_lines(scene, names))
        (labels / f"{number:05d}.txt").write_text(text, encoding="utf-8")


def write_config(folder: Path, line: str) -> Path:
    """Write the data set's description beside the splits and return its path."""
    config = {
        "path": str(folder.resolve()),
        "train": "images/train",
        "val": "images/val",
        "test": "images/test",
        "names": dict(enumerate(classes(line))),
    }
    path = folder / CONFIG
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path
