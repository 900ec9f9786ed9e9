"""A checkpoint is untrusted: what is no YOLO model is refused with its reason, and never runs."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from serve_app.engines.checkpoint import read_model, read_structure, usable_imgsz
from serve_app.engines.torch_engine import TorchEngine
from serve_app.errors import ModelBrokenError
from serve_app.types import Task
from tests.support.attack import Attack
from tests.support.checkpoints import STRUCTURES, CheckpointFolder, build, save

READERS = [read_model, read_structure, TorchEngine().verify, TorchEngine().open]


def refusal(reader: Callable[[Path], object], path: Path) -> str:
    """Return the reason for which `reader` refuses the file."""
    with pytest.raises(ModelBrokenError) as caught:
        reader(path)
    assert str(path.parent) not in caught.value.detail
    assert "Traceback" not in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("legacy", [False, True])
def test_foreign_code_is_named_and_never_run(
    reader: Callable[[Path], object], legacy: bool, tmp_path: Path
) -> None:
    """A pickle that calls os.system is refused by that name, in either container."""
    target = tmp_path / "ran"
    path = tmp_path / "model.pt"
    torch.save({"model": Attack(target)}, path, _use_new_zipfile_serialization=not legacy)

    reason = refusal(reader, path)

    assert "posix.system" in reason
    assert not target.exists()


@pytest.mark.parametrize("reader", READERS)
def test_foreign_code_deep_in_a_real_model_is_refused(
    reader: Callable[[Path], object], tmp_path: Path
) -> None:
    """An otherwise sound model with one foreign value is refused as a whole."""
    module = build(STRUCTURES["tiny-detect"])
    target = tmp_path / "ran"
    module.model[0].conv.extra = Attack(target)
    path = save_unsafely(module, tmp_path / "model.pt")

    assert "posix.system" in refusal(reader, path)
    assert not target.exists()


def test_foreign_code_by_an_unusual_opcode_is_refused(tmp_path: Path) -> None:
    """Pickle protocol 4 names globals in another way, which hides nothing."""
    target = tmp_path / "ran"
    path = rewrite_pickle(tmp_path, pickle.dumps({"model": Attack(target)}, protocol=4))

    assert "posix.system" in refusal(TorchEngine().verify, path)
    assert not target.exists()


def test_getattr_reaches_no_further_than_model_classes(tmp_path: Path) -> None:
    """`builtins.getattr`, which real checkpoints use, cannot be turned into a tool."""
    hostile = b"\x80\x02cbuiltins\ngetattr\nctorch\nTensor\nX\x07\x00\x00\x00__new__\x86R."
    path = rewrite_pickle(tmp_path, hostile)

    refusal(TorchEngine().verify, path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (os.urandom(4096), "no PyTorch checkpoint"),
        (b"\x80\x02garbage", "bare pickle"),
        (b"PK\x03\x04 and then nothing", "truncated"),
    ],
)
def test_other_files_are_refused_with_a_plain_reason(
    content: bytes, words: str, tmp_path: Path
) -> None:
    """What it is, is said in words."""
    path = tmp_path / "model.pt"
    path.write_bytes(content)

    assert words in refusal(TorchEngine().verify, path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_checkpoint_is_refused(
    share: float, tmp_path: Path, checkpoints: CheckpointFolder
) -> None:
    """Wherever the copy stopped."""
    whole = checkpoints("tiny-detect").read_bytes()
    path = tmp_path / "model.pt"
    path.write_bytes(whole[: int(len(whole) * share)])

    assert "truncated" in refusal(TorchEngine().verify, path)
    refusal(TorchEngine().open, path)


def test_damaged_weights_are_refused(tmp_path: Path, checkpoints: CheckpointFolder) -> None:
    """One flipped byte among the weights would give wrong answers without a word."""
    whole = bytearray(checkpoints("tiny-detect").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path = tmp_path / "model.pt"
    path.write_bytes(whole)

    assert "corrupt" in refusal(TorchEngine().verify, path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    """A TorchScript archive is a zip file too."""
    path = tmp_path / "model.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))  # type: ignore[no-untyped-call]

    assert "TorchScript" in refusal(TorchEngine().verify, path)


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        [1, 2],
        {"model": None},
        {"model": {"weight": torch.zeros(3)}},
        OrderedDict(weight=torch.zeros(3)),
        {"model": torch.nn.Linear(2, 2)},
    ],
)
def test_torch_files_without_a_yolo_model_are_refused(content: object, tmp_path: Path) -> None:
    """State dicts, tensors and other networks."""
    path = tmp_path / "model.pt"
    torch.save(content, path)

    refusal(TorchEngine().verify, path)
    refusal(TorchEngine().open, path)


def test_yolov5_repository_checkpoints_are_refused_with_advice(tmp_path: Path) -> None:
    """Their classes live in modules that are not here."""
    path = rewrite_pickle(tmp_path, b"\x80\x02cmodels.yolo\nDetectionModel\n)\x81.")

    reason = refusal(TorchEngine().verify, path)

    assert "models.yolo.DetectionModel" in reason
    assert "ONNX" in reason


@pytest.mark.parametrize("architecture", ["yolo26n-depth", "yolo26n-sem", "yolov8s-worldv2"])
def test_other_tasks_are_refused_naming_those_served(architecture: str, tmp_path: Path) -> None:
    """A sound model of a task that is not served."""
    path = save(build(architecture), tmp_path / "model.pt")

    reason = refusal(TorchEngine().verify, path)

    assert "detect, segment, pose, obb, classify" in reason


def test_compressed_records_are_refused(tmp_path: Path, checkpoints: CheckpointFolder) -> None:
    """PyTorch never compresses; a zip bomb does."""
    path = tmp_path / "model.pt"
    with (
        zipfile.ZipFile(checkpoints("tiny-detect")) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))

    assert "compressed" in refusal(TorchEngine().verify, path)


def test_weights_far_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    """A tensor may be one number seen a billion times."""
    module = build(STRUCTURES["tiny-detect"])
    small = torch.zeros(1)
    module.model[0].conv.weight = torch.nn.Parameter(
        small.expand(4096, 4096, 3, 3), requires_grad=False
    )
    path = save_unsafely(module, tmp_path / "model.pt")

    assert "declares" in refusal(TorchEngine().verify, path)
    assert "declares" in refusal(TorchEngine().open, path)


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize("architecture", ["tiny-detect", "yolo11n-cls"])
def test_estimate_is_what_opening_takes(stripped: bool, architecture: str, tmp_path: Path) -> None:
    """Verification tells the weights' bytes exactly, whatever else the file carries."""
    module = build(
        STRUCTURES["tiny-detect"] if architecture == "tiny-detect" else architecture, imgsz=64
    )
    path = save(module, tmp_path / "model.pt", stripped=stripped)
    engine = TorchEngine()

    estimate = engine.verify(path)
    model = engine.open(path)

    assert estimate.own_bytes == model.footprint.own_bytes
    assert list(estimate.shared) == list(model.footprint.shared)
    model.close()


def test_what_the_checkpoint_says_of_itself(checkpoints: CheckpointFolder) -> None:
    """Task, names, input size and stride."""
    info = read_structure(checkpoints("yolo11n-pose", imgsz=100)).description.info

    assert info.task is Task.POSE
    assert info.names[0] == "0"
    assert info.imgsz == (128, 128)
    assert info.stride == 32


def test_files_are_read_at_once_by_several_threads(checkpoints: CheckpointFolder) -> None:
    """Loader threads share one process-wide allow-list, which must not tear."""
    names = ["tiny-detect", "tiny-rtdetr", "tiny-end2end", "yolo11n-cls"]
    paths = [checkpoints(name) for name in names] * 4

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: read_model(path).description.info.task, paths))

    assert found == [Task.DETECT, Task.DETECT, Task.DETECT, Task.CLASSIFY] * 4


@pytest.mark.parametrize(
    ("imgsz", "expected"),
    [
        (640, (640, 640)),
        (100, (128, 128)),
        ([480, 640], (480, 640)),
        ([320], (320, 320)),
        (None, (640, 640)),
        ("large", (640, 640)),
        (-5, (640, 640)),
        ([1, 2, 3], (640, 640)),
    ],
)
def test_input_size_of_training_arguments(imgsz: object, expected: tuple[int, int]) -> None:
    """Rounded up to the stride; 640 where a file holds nonsense."""
    assert usable_imgsz(imgsz, 32) == expected


def save_unsafely(module: object, path: Path) -> Path:
    """Save a model that carries what no training writes."""
    torch.save({"model": module, "train_args": {"imgsz": 64}}, path)
    return path


def rewrite_pickle(folder: Path, data: bytes) -> Path:
    """Return a checkpoint whose archive is sound, with this pickle in it."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    path = folder / "model.pt"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("data.pkl") else source.read(name))
    return path
