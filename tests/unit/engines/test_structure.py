"""A structure is said in plain data, and rebuilt from them without running anything of a file."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    RandomHorizontalFlip,
    Resize,
    ToTensor,
)

from serve_app.engines.checkpoint import read_model
from serve_app.engines.graphs import take_tensors
from serve_app.engines.structure import (
    IndescribableError,
    decode_object,
    describe,
    encode_object,
    rebuild,
    signature_of,
)
from tests.support.checkpoints import CheckpointFolder

ARCHITECTURES = ["tiny-detect", "tiny-end2end", "tiny-rtdetr", "yolo11n-seg", "yolo26n-pose"]


def skeleton_of(checkpoints: CheckpointFolder, architecture: str) -> nn.Module:
    """Return the skeleton of a checkpoint."""
    module = read_model(checkpoints(architecture)).module
    take_tensors(module)
    return module


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_structures_survive_as_text(checkpoints: CheckpointFolder, architecture: str) -> None:
    """What is rebuilt of the JSON is described by the same JSON, on the meta device."""
    structure = describe(skeleton_of(checkpoints, architecture))

    rebuilt = rebuild(json.loads(json.dumps(structure)))

    assert describe(rebuilt) == structure
    assert signature_of(describe(rebuilt)) == signature_of(structure)
    assert all(tensor.is_meta for tensor in (*rebuilt.parameters(), *rebuilt.buffers()))


def test_modules_that_are_one_stay_one() -> None:
    """A shared submodule is not doubled."""
    shared = nn.ReLU()
    rebuilt: Any = rebuild(describe(nn.Sequential(shared, nn.Identity(), shared).eval()))

    assert rebuilt[0] is rebuilt[2]


def test_odd_values_survive() -> None:
    """Numbers that JSON does not know, tuples, types, tensors, keys that are no text."""
    module = nn.Identity()
    values: dict[str, Any] = {
        "nan": float("inf"),
        "pair": (1, (2.5, None)),
        "size": torch.Size([1, 2]),
        "table": {1: "a", "b": [True]},
        "dtype": torch.bfloat16,
        "stride": torch.tensor([8.0, 16.0]),
        "act": nn.functional.silu,
    }
    module.__dict__.update(values)

    rebuilt = rebuild(json.loads(json.dumps(describe(module))))

    stride = rebuilt.__dict__.pop("stride")
    assert torch.equal(stride, values.pop("stride"))
    assert {name: rebuilt.__dict__[name] for name in values} == values


@pytest.mark.parametrize(
    "spoil",
    [
        lambda module: module.register_forward_hook(print),
        lambda module: setattr(module, "helper", object()),
        lambda module: setattr(module, "helper", lambda: None),
        lambda module: setattr(module, "helper", json.dumps),
        lambda module: setattr(module, "number", 2**64),
        lambda module: setattr(module, "method", nn.ReLU().forward),
    ],
    ids=["hook", "object", "lambda", "function", "number", "method of another"],
)
def test_what_plain_data_cannot_say_is_refused(spoil: Callable[[nn.Module], object]) -> None:
    """Rather than left out."""
    module = nn.Identity()
    spoil(module)

    with pytest.raises(IndescribableError):
        describe(module)


def part(**changes: object) -> dict[str, Any]:
    """Return the description of a single module."""
    (plain,) = describe(nn.Identity().eval())
    return {**plain, **changes}


@pytest.mark.parametrize(
    "structure",
    [
        [],
        {},
        None,
        [part(**{"class": "os.system"})],
        [part(**{"class": "torch.nn.modules.nothing"})],
        [part(**{"class": "torch.nn.modules.module.register_module_forward_hook"})],
        [part(attributes={"act": {"$function": "os.system"}})],
        [part(attributes={"act": {"$function": "torch.hub.load"}})],
        [part(attributes={"act": {"$function": "torch.nn.functional.boolean_dispatch"}})],
        [part(attributes={"act": {"$function": "ultralytics.nn.tasks.colorstr"}})],
        [part(attributes={"act": {"$method": "__reduce__"}})],
        [part(attributes={"_forward_hooks": {"$dict": [[0, 1]]}})],
        [part(_parameters=7)],
        [part(attributes={"_parameters": 7})],
        [part(attributes={"act": {"$object": ["subprocess.Popen", {}]}})],
        [part(attributes={"act": {"$enum": ["os.system", "name"]}})],
        [part(attributes={"act": {"$unknown": 1}})],
        [part(attributes={"act": {"a": 1, "b": 2}})],
        [part(children={"a": 7})],
        [part(_parameters={"weight": [[-1], "float32"]})],
        [part(_parameters={"weight": [[1], "load"]})],
    ],
)
def test_foreign_data_are_refused(structure: object) -> None:
    """Nothing outside of torch's and Ultralytics' own parts is looked up."""
    with pytest.raises(IndescribableError):
        rebuild(structure)


def test_transforms_survive() -> None:
    """Those that a classification checkpoint carries."""
    transforms = Compose(
        [Resize(224), CenterCrop(224), ToTensor(), Normalize((0.0,) * 3, (1.0,) * 3)]
    )

    again = decode_object(json.loads(json.dumps(encode_object(transforms))))

    assert repr(again) == repr(transforms)
    picture = torch.rand(3, 300, 260)
    first, second = (Compose([c.transforms[0], c.transforms[1]]) for c in (transforms, again))
    assert torch.equal(first(picture), second(picture))


def test_functions_are_those_of_networks() -> None:
    """Defined where networks find theirs: what such a module merely imported may do anything."""
    for name in ("torch.nn.functional.boolean_dispatch", "ultralytics.nn.tasks.colorstr"):
        with pytest.raises(IndescribableError, match="of no known kind"):
            rebuild([part(attributes={"act": {"$function": name}})])


def test_data_have_nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some modules install packages as they are imported."""
    name = "ultralytics.nn.backends.hailo"
    monkeypatch.delitem(sys.modules, name)

    with pytest.raises(IndescribableError):
        rebuild([part(**{"class": f"{name}.HailoBackend"})])

    assert name not in sys.modules


def made(name: str, **attributes: object) -> dict[str, Any]:
    """Return an object of torchvision's as plain data."""
    return {"$object": [f"torchvision.transforms.transforms.{name}", attributes]}


@pytest.mark.parametrize(
    "data",
    [
        made("RandomHorizontalFlip", p=0.5),
        made("Lambda", lambd={"$function": "torch.nn.functional.relu"}),
        made("Compose", transforms=[{"$function": "torch.nn.functional.relu"}]),
        made("Compose", transforms=[{"$method": "forward"}]),
        made("Compose", transforms=[], forward=None),
        made("ToTensor", __class__=None),
        made("CenterCrop", size=1, training=True, _forward_hooks={"$dict": []}),
        made("CenterCrop", size=1, training=True, _modules={"$dict": []}),
        made("CenterCrop", size={"$float": "1.0"}, training=True),
        made("CenterCrop", size={"$float": [1]}, training=True),
        {"$enum": ["torchvision.transforms.autoaugment.AutoAugmentPolicy", "IMAGENET"]},
        {"$enum": ["torchvision.transforms.functional.InterpolationMode", "nothing"]},
        {"$object": ["torchvision.transforms.functional.InterpolationMode", {}]},
        {"$function": "torch.nn.functional.relu"},
        {"a": 1},
    ],
)
def test_foreign_objects_are_refused(data: object) -> None:
    """Only what a classifier's transforms are made of, exactly as it was written."""
    with pytest.raises(IndescribableError):
        decode_object(data)


def test_deep_data_are_refused() -> None:
    """Whatever that raises."""
    data: list[Any] = []
    for _ in range(5000):
        data = [data]

    with pytest.raises(IndescribableError):
        decode_object(data)
    with pytest.raises(IndescribableError):
        rebuild([part(attributes={"act": data})])


@pytest.mark.parametrize("transform", [RandomHorizontalFlip(), print, nn.functional.relu])
def test_objects_that_could_not_be_read_again_are_not_written(transform: object) -> None:
    """Else they would be written again and again."""
    with pytest.raises(IndescribableError):
        encode_object(Compose([transform]))
