"""The answers are those of `YOLO(path).predict` on the same file and picture.

Random nets prove that every task, head and shape takes the same way; the demo models, which were
trained, prove it on outputs that are sensitive to rounding.

ONNX against its own `.pt` differs in two ways that are no errors: an export with a fixed shape
letterboxes to a square where a checkpoint uses the picture's own rectangle, and ONNX Runtime sums
in another order than PyTorch, which moves boxes by less than 0.01 pixel here.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from ultralytics.models import YOLO

from serve_app.engines.decoding import decode_image
from serve_app.engines.factory import create_engines
from serve_app.types import ImageResult, ModelFormat, PredictParams
from tests.support.checkpoints import BUS, ZIDANE, CheckpointFolder, reference
from tests.support.models import answer
from tests.support.parity import assert_parity

ROOT = Path(__file__).parents[2]
DEMO_MODELS = sorted(ROOT.glob("models/*/*/model.pt"))
SAMPLES = sorted(ROOT.glob("demo/samples/*.jpg"))
TASKS = ["", "-seg", "-pose", "-obb", "-cls"]
CONF = 0.05
EXPORTS = [
    ("yolo11n", False),
    ("yolo11n", True),
    ("yolo26n-seg", False),
    ("yolo11n-pose", True),
    ("yolo11n-obb", False),
    ("yolo26n-cls", False),
    ("tiny-rtdetr", False),
]


def answer_of(path: Path, picture: Path, params: PredictParams) -> ImageResult:
    """Return our answer, the whole way from files."""
    model = create_engines("cpu", threads=2, streams=1, precision="fp32")[
        ModelFormat(path.suffix[1:])
    ].open(path)
    try:
        model.warm_up()
        return answer(model, decode_image(picture.read_bytes()), params)
    finally:
        model.close()


@pytest.mark.parametrize("picture", [BUS, ZIDANE], ids=lambda path: path.stem)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["yolo11n", "yolo26n"])
def test_random_nets_of_every_task(
    family: str, task: str, picture: Path, checkpoints: CheckpointFolder
) -> None:
    """Boxes, outlines, keypoints, corners and classes, with and without an end-to-end head."""
    path = checkpoints(f"{family}{task}", imgsz=224)

    ours = answer_of(path, picture, PredictParams(conf=CONF, max_det=40))

    assert len(ours.class_id) > 0
    assert_parity(ours, reference(path, picture, conf=CONF, max_det=40))


@pytest.mark.parametrize("path", DEMO_MODELS, ids=lambda path: path.parts[-3])
def test_demo_models(path: Path) -> None:
    """At their own size and the default thresholds, on photographs and on scenes they know."""
    model = create_engines("cpu", threads=2, streams=1, precision="fp32")[ModelFormat.PT].open(path)
    standard: Any = YOLO(str(path))

    for picture in [BUS, ZIDANE, *SAMPLES]:
        ours = answer(model, decode_image(picture.read_bytes()), PredictParams())
        (expected,) = standard.predict(str(picture), verbose=False)
        assert_parity(ours, expected)
    model.close()


@pytest.fixture(scope="session")
def exports(
    checkpoints: CheckpointFolder, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bool], Path]:
    """ONNX exports by architecture and whether their shape is dynamic."""
    folder = tmp_path_factory.mktemp("exports")
    found = {}
    for architecture, dynamic in EXPORTS:
        path = folder / f"net-{architecture}-{'dynamic' if dynamic else 'fixed'}.pt"
        shutil.copy(checkpoints(architecture, imgsz=160), path)
        model: Any = YOLO(str(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every shape that it fixes
            written = model.export(
                format="onnx", simplify=False, dynamic=dynamic, imgsz=160, verbose=False
            )
        found[architecture, dynamic] = Path(written)
    return found


@pytest.mark.parametrize("export", EXPORTS, ids=lambda key: f"{key[0]}-{key[1]}")
def test_onnx_exports(export: tuple[str, bool], exports: dict[tuple[str, bool], Path]) -> None:
    """Against Ultralytics on the same ONNX file."""
    path = exports[export]

    ours = answer_of(path, BUS, PredictParams(conf=CONF, max_det=40))

    assert len(ours.class_id) > 0
    assert_parity(ours, reference(path, BUS, conf=CONF, max_det=40, imgsz=160))


@pytest.mark.parametrize("dynamic", [False, True])
def test_onnx_export_agrees_with_its_checkpoint(
    dynamic: bool, exports: dict[tuple[str, bool], Path], checkpoints: CheckpointFolder
) -> None:
    """With the same letterboxing, the two engines tell the same."""
    ours = answer_of(exports["yolo11n", dynamic], BUS, PredictParams(conf=CONF, max_det=40))

    expected = reference(
        checkpoints("yolo11n", imgsz=160), BUS, conf=CONF, max_det=40, rect=dynamic
    )

    assert_parity(ours, expected)
