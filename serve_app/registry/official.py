"""The checkpoints that Ultralytics publishes, as models that need no file of their own.

Each is served under its own name; its version is the release tag, so that a newer release is
another model key. The list is written down here because importing it would import torch.
"""

from collections.abc import Iterable

from serve_app.errors import InvalidParameterError
from serve_app.types import ModelCard, ModelFormat, ModelKey, ModelSpec, Task

SOURCE = "ultralytics"
DEFAULT_TAG = "v8.4.0"

_TASKS = {
    "": Task.DETECT,
    "-oiv7": Task.DETECT,
    "-seg": Task.SEGMENT,
    "-pose": Task.POSE,
    "-obb": Task.OBB,
    "-cls": Task.CLASSIFY,
}
_INPUT_SIZES = {Task.CLASSIFY: 224, Task.OBB: 1024}
_ALL_TASKS = ("", "-cls", "-seg", "-pose", "-obb")


def _names() -> dict[str, tuple[Task, int]]:
    """Return every name that can be served, with its task and input size in pixels."""
    families: list[tuple[str, Iterable[str], Iterable[str]]] = [
        ("yolov3{}u", ("", "-spp", "-tiny"), ("",)),
        ("yolov5{}u", "nsmlx", ("",)),
        ("yolov8{}", "nsmlx", (*_ALL_TASKS, "-oiv7")),
        ("yolov9{}", "tsmce", ("",)),
        ("yolov9{}", "ce", ("-seg",)),
        ("yolov10{}", "nsmblx", ("",)),
        ("yolo11{}", "nsmlx", _ALL_TASKS),
        ("yolo12{}", "nsmlx", ("",)),
        ("yolo26{}", "nsmlx", _ALL_TASKS),
    ]
    names = {
        family.format(size) + suffix: (_TASKS[suffix], _INPUT_SIZES.get(_TASKS[suffix], 640))
        for family, sizes, suffixes in families
        for size in sizes
        for suffix in suffixes
    }
    return names | {f"yolov5{size}6u": (Task.DETECT, 1280) for size in "nsmlx"}


OFFICIAL_MODELS = _names()


class OfficialScanner:
    """The official models that the configuration names."""

    def __init__(self, names: Iterable[str], *, url: str, tag: str = DEFAULT_TAG) -> None:
        """Check the names of the setting `official_models`.

        Raises:
            InvalidParameterError: a name is not one of theirs, or its task cannot be served
        """
        self._specs = [_spec(name, url.rstrip("/"), tag) for name in dict.fromkeys(names)]

    def __str__(self) -> str:
        return f"official models ({len(self._specs)})"

    def scan(self) -> list[ModelSpec]:
        """Return the models; nothing is fetched."""
        return self._specs

    def scan_name(self, name: str) -> list[ModelSpec]:
        """Return the one model of that name, if it is offered."""
        return [spec for spec in self._specs if spec.key.name == name]


def _spec(name: str, url: str, tag: str) -> ModelSpec:
    if name not in OFFICIAL_MODELS:
        raise InvalidParameterError(
            f"official_models: {name!r} is not an official model that can be served; write a name "
            "without suffix, such as yolo26n, yolo11n-seg or yolov8n-pose "
            "(detect, segment, pose, obb and classify models of YOLOv3 to YOLO26)"
        )
    task, imgsz = OFFICIAL_MODELS[name]
    card = ModelCard(
        description=f"Official Ultralytics model {name}",
        architecture=name,
        task=task,
        imgsz=imgsz,
        license="AGPL-3.0",
    )
    return ModelSpec(
        ModelKey(name, tag), ModelFormat.PT, SOURCE, f"{url}/{tag}/{name}.pt", card=card
    )
