"""The demo models are what their cards say, and their pictures follow from seeds."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics.models import YOLO
from ultralytics.utils.metrics import box_iou

from demo.draw import write_samples
from demo.parts import classes
from demo.scenes import draw_scene

ROOT = Path(__file__).parents[2]
CARDS = sorted(ROOT.glob("models/*/*/model.yaml"))
HELD_OUT_SEED = 9_000_000  # no training, evaluation or sample has it


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parts[-3])
def test_cards_tell_what_the_files_are(path: Path) -> None:
    """Small enough, good enough, and with the classes that the file itself names."""
    card = yaml.safe_load(path.read_text())
    weights = path.with_suffix(".pt")
    model: Any = YOLO(str(weights))
    assert weights.stat().st_size <= 6_000_000
    assert card["evaluation"]["map50"] >= 0.9
    assert card["classes"] == list(model.names.values())
    assert card["task"] == model.task
    assert {"data", "scenes", "epochs"} <= card["training"].keys()


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parts[-3])
def test_models_find_the_parts_of_new_scenes(path: Path) -> None:
    """On a few scenes that nobody has seen, most labelled parts are found by their name."""
    model: Any = YOLO(str(path.with_suffix(".pt")))
    line = path.parts[-3].rpartition("-")[0]
    found, labelled = 0, 0
    for number in range(12):
        scene = draw_scene(line, HELD_OUT_SEED + number, (640, 480))
        (result,) = model.predict(scene.image, verbose=False)
        for name, box in scene.labels:
            labelled += 1
            same = [
                i for i, c in enumerate(result.boxes.cls.tolist()) if model.names[int(c)] == name
            ]
            boxes = result.boxes.xyxy[same]
            if len(boxes) and box_iou(torch.tensor([box]), boxes).max() > 0.5:
                found += 1
    assert labelled > 30
    assert found / labelled > 0.75


def test_scenes_follow_from_their_seed() -> None:
    """The same seed draws the same pixels and labels, another seed others."""
    for line in ("fasteners", "components", "codes"):
        one, same, other = (draw_scene(line, seed, (320, 240)) for seed in (5, 5, 6))
        assert np.array_equal(one.image, same.image)
        assert one.labels == same.labels
        assert not np.array_equal(one.image, other.image)
        assert {name for name, _ in one.labels} <= set(classes(line))


def test_shipped_samples_are_the_drawn_ones(tmp_path: Path) -> None:
    """What lies in demo/samples is what the script draws, but for the rounding of other CPUs."""
    write_samples(tmp_path)
    shipped = sorted((ROOT / "demo/samples").glob("*.jpg"))
    assert [path.name for path in shipped] == sorted(path.name for path in tmp_path.iterdir())
    for path in shipped:
        ours, drawn = cv2.imread(str(path)), cv2.imread(str(tmp_path / path.name))
        assert ours is not None
        assert drawn is not None
        assert np.abs(ours.astype(int) - drawn.astype(int)).mean() < 1.0
