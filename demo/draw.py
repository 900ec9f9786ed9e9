"""Command line: draw scenes, contact sheets of parts, or the sample pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from demo.drawing import Image, pixels
from demo.parts import LINES, MIXED, classes, painter
from demo.scenes import Scene, draw_scene

SAMPLES_SEED = 7_000_000  # training uses seeds 1 and 2, evaluation seed 3 (in millions)
SAMPLES: tuple[tuple[str, str, int], ...] = (
    ("fasteners-1", "fasteners", 2),
    ("fasteners-2", "fasteners", 5),
    ("components-1", "components", 6),
    ("components-2", "components", 11),
    ("codes-1", "codes", 7),
    ("codes-2", "codes", 12),
    ("line", MIXED, 7),
)


def annotated(scene: Scene) -> Image:
    """Return the scene's picture with its labels drawn in."""
    image = scene.image.copy()
    for name, (x0, y0, x1, y1) in scene.labels:
        cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)), (0, 255, 255), 1)
        at = (int(x0), max(12, int(y0) - 3))
        cv2.putText(image, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 255, 255), 1, cv2.LINE_AA)
    return image


def parts_sheet(name: str, columns: int, seed: int, tile: int = 160) -> Image:
    """Return one row of drawings of the part `name`, each (tile, tile, 3), on grey."""
    rng = np.random.default_rng(seed)
    row = np.full((tile, tile * columns, 3), 150, np.uint8)
    for i in range(columns):
        bgra = painter(name)(rng).bgra
        zoom = (tile - 10) / max(bgra.shape[:2])
        small = cv2.resize(bgra, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        height, width = small.shape[:2]
        top, left = (tile - height) // 2, i * tile + (tile - width) // 2
        under = row[top : top + height, left : left + width]
        rest = 1 - small[..., 3:] / 255
        under[...] = pixels(small[..., :3] + under * rest)
    return row


def write_samples(folder: Path, quality: int = 88) -> None:
    """Write the sample pictures, drawn from seeds that no training has seen."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, line, number in SAMPLES:
        counts = (14, 16) if line == MIXED else (7, 10)
        scene = draw_scene(line, SAMPLES_SEED + number, (960, 720), counts)
        path = folder / f"{name}.jpg"
        cv2.imwrite(str(path), scene.image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.draw", description=__doc__)
    parser.add_argument("what", choices=["samples", "parts", "scenes"])
    parser.add_argument("--line", default=MIXED, choices=[*LINES, MIXED])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/drawings"))
    parser.add_argument("--labels", action="store_true", help="draw the labels into the scenes")
    args = parser.parse_args()
    if args.what == "samples":
        return write_samples(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "parts":
        rows = [parts_sheet(name, args.count, args.seed) for name in classes(args.line)]
        cv2.imwrite(str(args.out / f"parts-{args.line}.png"), np.vstack(rows))
        return None
    for i in range(args.count):
        scene = draw_scene(args.line, args.seed + i)
        image = annotated(scene) if args.labels else scene.image
        cv2.imwrite(str(args.out / f"{args.line}-{args.seed + i}.jpg"), image)
    return None


if __name__ == "__main__":
    main()
