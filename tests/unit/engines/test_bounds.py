"""A checkpoint takes no more than its size lets one expect, whatever it declares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms import Compose
from ultralytics.nn import tasks
from ultralytics.nn.modules.block import TorchVision

from serve_app.engines.checkpoint import read_model, read_structure
from serve_app.engines.memory import release_free_memory, resident_bytes
from serve_app.engines.store import ArtifactStore
from serve_app.engines.torch_engine import TorchEngine
from serve_app.errors import ModelBrokenError
from tests.support.checkpoints import STRUCTURES, CheckpointFolder, build, save
from tests.unit.engines.test_checkpoint import refusal, rewrite_pickle, save_unsafely

READERS = [read_model, read_structure]


class Call:
    """A value whose unpickling calls something."""

    def __init__(self, called: Callable[..., object], *arguments: object) -> None:
        self._reduced = called, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._reduced


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Call(nn.Linear, 16_000, 16_000), "torch.nn.modules.linear.Linear"),
        (Call(TorchVision, "resnet18"), "ultralytics.nn.modules.block.TorchVision"),
        (Call(tasks.DetectionModel, "http://127.0.0.1:9/a.yaml"), "tasks.DetectionModel"),
        (Call(bytearray, 10**12), "builtins.bytearray"),
        (Call(torch._utils._rebuild_meta_tensor_no_storage, torch.half, (1,), (1,), False), "meta"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_calls_are_refused_by_name(
    reader: Callable[[Path], object], call: Call, name: str, tmp_path: Path
) -> None:
    """A class that is allowed may not be called: that takes memory, or reaches the network."""
    torch.save({"model": call}, tmp_path / "model.pt")

    assert name in refusal(reader, tmp_path / "model.pt")


LINEAR = b"ctorch.nn.modules.linear\nLinear\n"


@pytest.mark.parametrize(
    ("hostile", "words"),
    [
        (LINEAR + b"K\x09K\x09\x86\x81.", "Linear"),  # NEWOBJ with arguments
        (LINEAR + b"q\x00(K\x09K\x09tq\x010h\x00h\x01R.", "Linear|corrupt"),  # by the memo
        (LINEAR + b"(K\x09K\x09l\x81.", "Linear|corrupt"),  # LIST is no opcode of torch.save
        (b"(K\x09K\x09itorch.nn.modules.linear\nLinear\n.", "corrupt"),  # INST
        (b"]K\x09a)R.", "what it loaded"),  # calling a list
        (b"ctorch.nn.modules.rnn\nLSTM\n)\x81}b.", "LSTM"),
        (b"}" + b")" + b"q\x00h\x00\x86" * 20 + b"Ns.", "corrupt"),  # 2^20 to hash
        (b"K\x09.", "holds no YOLO model"),
    ],
)
def test_whatever_the_opcode(hostile: bytes, words: str, tmp_path: Path) -> None:
    """Tricks on the unpickler's stack lead nowhere."""
    path = rewrite_pickle(tmp_path, b"\x80\x02" + hostile)

    with pytest.raises(ModelBrokenError, match=words):
        read_structure(path)


@pytest.mark.parametrize("reader", READERS)
def test_plain_tensors_are_small(reader: Callable[[Path], object], tmp_path: Path) -> None:
    """One number seen a million times would be copied, and told number by number."""
    module = build(STRUCTURES["tiny-detect"])
    module.model[-1].stride = torch.zeros(1).expand(2**20)
    path = save_unsafely(module, tmp_path / "model.pt")

    assert "1048576 numbers" in refusal(reader, path)


def nest_modules(depth: int) -> nn.Module:
    """Return a module in which each level holds the next twice."""
    inner: nn.Module = nn.Identity()
    for _ in range(depth):
        inner = nn.Sequential(inner, nn.Sequential(inner))
    return inner


def nest_lists(depth: int) -> list[Any]:
    """Return a list in which each level holds the next twice."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner, inner]
    return inner


def nest_transforms(depth: int) -> Compose:
    """Return a transform in which each level holds the next twice."""
    inner = Compose([])
    for _ in range(depth):
        inner = Compose([inner, inner])
    return inner


def nest_once(depth: int) -> list[Any]:
    """Return a list in which each level holds the next once, three times as deep."""
    inner: list[Any] = []
    for _ in range(3 * depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize("nest", [nest_modules, nest_lists, nest_transforms, nest_once])
@pytest.mark.parametrize("reader", READERS)
def test_structures_do_not_unfold_for_ever(
    reader: Callable[[Path], object], nest: Callable[[int], Any], tmp_path: Path
) -> None:
    """Forty levels are a short file, and would be walked for years."""
    module = build(STRUCTURES["tiny-detect"])
    module.model[0].extra = nest(40)
    path = save_unsafely(module, tmp_path / "model.pt")

    assert "structure is larger" in refusal(reader, path)


def repeat_text(module: nn.Module) -> None:
    """Let a module hold a long text a thousand times over."""
    module.__dict__["texts"] = ["a" * 100_000] * 1000


def repeat_key(module: nn.Module) -> None:
    """Let a module hold a long key a thousand times over."""
    module.__dict__["tables"] = [{"a" * 100_000: None}] * 1000


def repeat_tensor(module: nn.Module) -> None:
    """Let a module hold a tensor, small by itself, under two thousand names."""
    numbers = torch.zeros(4096)
    module.__dict__.update({f"numbers{index}": numbers for index in range(2000)})


def repeat_shape(module: nn.Module) -> None:
    """Let a module hold a parameter of many dimensions under many names."""
    blank = nn.Parameter(torch.zeros((1,) * 1000), requires_grad=False)
    module._parameters.update({f"blank{index}": blank for index in range(5000)})


@pytest.mark.parametrize("repeat", [repeat_text, repeat_key, repeat_tensor, repeat_shape])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_told_of_a_structure_is_bounded(
    reader: Callable[[Path], object], repeat: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    """A file holds such a thing once; a description would tell it each time."""
    module = build(STRUCTURES["tiny-detect"])
    repeat(module.model[0])
    path = save_unsafely(module, tmp_path / "model.pt")

    assert "numbers and characters outside its parameters" in refusal(reader, path)


@pytest.mark.parametrize(
    "names", [{0: "a" * 257}, dict.fromkeys(range(10_001), "a"), "names", [nest_lists(3)]]
)
@pytest.mark.parametrize("reader", READERS)
def test_class_names_are_bounded(
    reader: Callable[[Path], object], names: object, tmp_path: Path
) -> None:
    """They go into every answer."""
    module = build(STRUCTURES["tiny-detect"])
    module.names = names
    path = save_unsafely(module, tmp_path / "model.pt")

    assert "class name" in refusal(reader, path)


def test_foreign_names_are_cut_and_printable(tmp_path: Path) -> None:
    """They go into answers and logs."""
    path = rewrite_pickle(tmp_path, b"\x80\x02c" + b"A" * 1_000_000 + b"\x1b[31m\nsystem\nq\x00.")

    reason = refusal(read_structure, path)

    assert len(reason) < 300
    assert reason.isprintable()


def test_only_the_model_is_read(tmp_path: Path) -> None:
    """A file may carry far more, such as the state of an optimizer."""
    module = build(STRUCTURES["tiny-detect"])
    module.args = {"imgsz": 64}
    torch.save(
        {"model": module, "train_args": module.args, "optimizer": torch.zeros(2**24)},
        tmp_path / "model.pt",
    )
    before = bytes_read()

    read_model(tmp_path / "model.pt")

    assert bytes_read() - before < 2**24


def bytes_read() -> int:
    """Return how much this process has read so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.mark.alone
def test_memory_of_an_open_model_is_its_footprint(
    checkpoints: CheckpointFolder, tmp_path: Path
) -> None:
    """What reading and warming up took besides is given back."""
    engine = TorchEngine()
    first = engine.open(checkpoints("tiny-detect", imgsz=64))
    first.warm_up()
    path = save(build("yolo11s", imgsz=320), tmp_path / "model.pt")
    release_free_memory()
    before = resident_bytes()

    model = engine.open(path)
    model.warm_up()

    growth = resident_bytes() - before
    assert growth < 1.5 * model.footprint.own_bytes + 10 * 2**20
    model.close()
    first.close()


@pytest.mark.alone
def test_ledger_agrees_with_the_process(checkpoints: CheckpointFolder, tmp_path: Path) -> None:
    """What models say they hold is what the process grows by, to a tenth."""
    engine = TorchEngine(store=ArtifactStore(tmp_path, 2**30))
    path = checkpoints("yolo11n", imgsz=96)
    engine.prepare(path)
    first = engine.open(path)
    first.warm_up()
    release_free_memory()
    before = resident_bytes()

    models = [engine.open(path) for _ in range(24)]
    for model in models:
        model.warm_up()

    release_free_memory()
    growth = resident_bytes() - before
    assert growth == pytest.approx(sum(model.footprint.own_bytes for model in models), rel=0.1)
    for model in (first, *models):
        model.close()
