"""Half the bits change nothing that matters on trained models; random ones would prove nothing."""

from pathlib import Path

import pytest

from benchmarks.precision import compare, draw_held_out

ROOT = Path(__file__).parents[2]
MODELS = sorted(ROOT.glob("models/*/*/model.pt"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parts[-3])
def test_bf16_finds_what_fp32_finds(path: Path) -> None:
    """On scenes that no training has seen, on any CPU: where there are no units it is emulated."""
    scenes = draw_held_out(path.parts[-3].rpartition("-")[0], 12)

    effect = compare(path, scenes, "bf16")

    assert effect.findings > 30
    assert effect.unmatched <= 0.05 * effect.findings
    assert effect.map50[0] > 0.7
    assert abs(effect.map50[0] - effect.map50[1]) < 0.02
    assert effect.typical_px < 0.5
    assert effect.usual_px < 4
    assert effect.shift_conf < 0.1
