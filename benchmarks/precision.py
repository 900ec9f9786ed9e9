"""What half the bits cost: accuracy and box shifts of the demo models against fp32.

`python -m benchmarks.precision` writes docs/benchmarks/precision.md. The scenes are drawn from
seeds that no training has seen; every precision sees the same ones.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from ultralytics.utils.metrics import ap_per_class, box_iou

from demo.scenes import Scene, draw_scene
from serve_app.engines.base import EngineModel
from serve_app.engines.precision import Precision
from serve_app.engines.torch_engine import TorchEngine
from serve_app.errors import ServeAppError
from serve_app.types import ImageResult, PredictParams

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs/benchmarks/precision.md"
FIRST_SEED = 9_500_000
_LEVELS = torch.linspace(0.5, 0.95, 10)
_SAME = 0.5  # overlap from which two findings are the same one
_CONF = 0.25  # the default threshold, at which shifts are looked at


@dataclass(frozen=True, slots=True)
class Effect:
    """One precision against fp32 on one model.

    map50, map50_95: mean average precision of fp32 and of the other
    typical_px, usual_px, largest_px: distance of a box's farthest side from where fp32 puts it,
        of half the findings, of 99 in 100, of all
    shift_conf: largest difference of a confidence
    findings: how many fp32 has above the default threshold
    unmatched: findings above the threshold in one of the two only
    """

    map50: tuple[float, float]
    map50_95: tuple[float, float]
    typical_px: float
    usual_px: float
    largest_px: float
    shift_conf: float
    findings: int
    unmatched: int


def draw_held_out(line: str, count: int) -> list[Scene]:
    """Return `count` scenes of a line that no training has seen."""
    return [draw_scene(line, FIRST_SEED + number, (640, 480)) for number in range(count)]


def compare(path: Path, scenes: Sequence[Scene], precision: Precision) -> Effect:
    """Return what `precision` does to the model in `path` on these scenes."""
    fine, coarse = (_predict(path, scenes, each) for each in ("fp32", precision))
    names = {name: number for number, name in fine[1].items()}
    labels = [[(names[name], box) for name, box in scene.labels] for scene in scenes]
    scores = [_mean_precision(found, labels) for found in (fine[0], coarse[0])]
    differences = [_differences(one, other) for one, other in zip(fine[0], coarse[0], strict=True)]
    shifts = [shift for found, _, _ in differences for shift in found]
    return Effect(
        map50=(scores[0][0], scores[1][0]),
        map50_95=(scores[0][1], scores[1][1]),
        typical_px=float(np.median(shifts)),
        usual_px=float(np.quantile(shifts, 0.99)),
        largest_px=max(shifts),
        shift_conf=max(shift for _, found, _ in differences for shift in found),
        findings=sum(int((found.confidence >= _CONF).sum()) for found in fine[0]),
        unmatched=sum(alone for _, _, alone in differences),
    )


def _predict(
    path: Path, scenes: Sequence[Scene], precision: Precision
) -> tuple[list[ImageResult], dict[int, str]]:
    model = TorchEngine(precision=precision).open(path)
    found = [_answer(model, scene) for scene in scenes]
    names = dict(model.info.names)
    model.close()
    return found, names


def _answer(model: EngineModel, scene: Scene) -> ImageResult:
    params = PredictParams(conf=0.001)
    (found,) = model.predict([model.preprocess(scene.image, params)])
    if isinstance(found, ServeAppError):
        raise found
    return found


def _boxes(found: ImageResult) -> torch.Tensor:
    assert found.boxes is not None  # noqa: S101 - the demo models detect
    return torch.from_numpy(found.boxes)


def _mean_precision(
    found: Sequence[ImageResult],
    labels: Sequence[Sequence[tuple[int, tuple[float, float, float, float]]]],
) -> tuple[float, float]:
    """Return mAP50 and mAP50-95."""
    hits = [_hits(one, of) for one, of in zip(found, labels, strict=True)]
    measured = ap_per_class(
        np.concatenate(hits),
        np.concatenate([one.confidence for one in found]),
        np.concatenate([one.class_id for one in found]),
        np.array([number for of in labels for number, _ in of]),
    )
    precision: npt.NDArray[np.float64] = np.asarray(measured[5])
    return float(precision[:, 0].mean()), float(precision.mean())


def _hits(
    found: ImageResult, labels: Sequence[tuple[int, tuple[float, float, float, float]]]
) -> npt.NDArray[np.bool_]:
    """Return (n, 10): whether each finding, best first, is a label's first at each overlap."""
    hits = np.zeros((len(found.class_id), len(_LEVELS)), dtype=np.bool_)
    if not labels or not len(found.class_id):
        return hits
    overlaps = box_iou(torch.tensor([box for _, box in labels]), _boxes(found)).numpy()
    overlaps *= np.array([number for number, _ in labels])[:, None] == found.class_id[None]
    for level, least in enumerate(_LEVELS.tolist()):
        free = set(range(len(labels)))
        for index in range(len(found.class_id)):
            best = max(free, key=lambda label: overlaps[label, index], default=None)
            if best is not None and overlaps[best, index] >= least:
                hits[index, level] = True
                free.remove(best)
    return hits


def _differences(fine: ImageResult, coarse: ImageResult) -> tuple[list[float], list[float], int]:
    """Return the shift of each pair's farthest side, of its confidence, and how many are alone."""
    kept = [np.flatnonzero(found.confidence >= _CONF) for found in (fine, coarse)]
    sides = [_boxes(found)[index] for found, index in zip((fine, coarse), kept, strict=True)]
    overlaps = box_iou(sides[0], sides[1]).numpy()
    overlaps *= fine.class_id[kept[0]][:, None] == coarse.class_id[kept[1]][None]
    pairs = _pair(overlaps)
    shifts = [float((sides[0][i] - sides[1][j]).abs().max()) for i, j in pairs]
    confidences = [
        float(abs(fine.confidence[kept[0][i]] - coarse.confidence[kept[1][j]])) for i, j in pairs
    ]
    return shifts, confidences, sum(overlaps.shape) - 2 * len(pairs)


def _pair(overlaps: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """Pair findings one to one, those that overlap most first."""
    left = overlaps.copy()
    pairs = []
    while left.size and left.max() >= _SAME:
        i, j = (int(index) for index in np.unravel_index(left.argmax(), left.shape))
        pairs.append((i, j))
        left[i, :] = left[:, j] = 0
    return pairs


def _row(name: str, effect: Effect) -> str:
    return (
        f"| {name} | {effect.map50[0]:.4f} | {effect.map50[1]:.4f} | {effect.map50_95[0]:.4f} "
        f"| {effect.map50_95[1]:.4f} | {effect.typical_px:.2f} | {effect.usual_px:.2f} "
        f"| {effect.largest_px:.2f} | {effect.shift_conf:.4f} "
        f"| {effect.unmatched} of {effect.findings} |"
    )


def main(arguments: Sequence[str]) -> int:
    """Measure all demo models and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16"])
    parser.add_argument("--scenes", type=int, default=60)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # several spin when the machine has other work, and take minutes
    rows = []
    for path in sorted(ROOT.glob("models/*/*/model.pt")):
        name = path.parts[-3]
        scenes = draw_held_out(name.rpartition("-")[0], options.scenes)
        rows.append(_row(name, compare(path, scenes, options.precision)))
        print(rows[-1], flush=True)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(_PAGE.format(rows="\n".join(rows), n=options.scenes, **vars(options)))
    return 0


_PAGE = """# What {precision} costs in accuracy

The demo models on {n} drawn scenes of 640x480 each that no training has seen, fp32 against
{precision}: all layers in {precision}, the head's last layers and the decoding of boxes in fp32.
Shifts are those of findings above the default threshold of 0.25.

| model | mAP50 fp32 | {precision} | mAP50-95 fp32 | {precision} | shift, px: 50 % | 99 % | all \
| confidence shift | findings in one only |
|---|---|---|---|---|---|---|---|---|---|
{rows}

Made by `python -m benchmarks.precision`; tests/contracts/test_precision.py holds it to bounds.
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
