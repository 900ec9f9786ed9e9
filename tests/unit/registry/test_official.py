"""Official models: names from the configuration become entries without a file."""

import pytest
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

from serve_app.errors import InvalidParameterError
from serve_app.registry.official import DEFAULT_TAG, OFFICIAL_MODELS, OfficialScanner
from serve_app.settings import OFFICIAL_URL
from serve_app.types import ModelFormat, Task


def test_a_name_becomes_an_entry() -> None:
    """The release is its version, the download its place."""
    (entry,) = OfficialScanner(["yolo11n-seg", "yolo11n-seg"], url=OFFICIAL_URL).scan()
    assert str(entry.key) == "yolo11n-seg@v8.4.0"
    assert entry.source == "ultralytics"
    assert entry.format is ModelFormat.PT
    assert entry.size_bytes is None
    assert entry.location == (
        "https://github.com/ultralytics/assets/releases/download/v8.4.0/yolo11n-seg.pt"
    )
    assert (entry.card.task, entry.card.imgsz) == (Task.SEGMENT, 640)


def test_a_mirror_takes_the_place_of_the_origin() -> None:
    """A trailing slash makes no difference."""
    (entry,) = OfficialScanner(["yolo26n"], url="http://mirror/x/").scan()
    assert entry.location == "http://mirror/x/v8.4.0/yolo26n.pt"


@pytest.mark.parametrize("name", ["yolo99n", "yolo11n.pt", "sam_b", "", "rtdetr-l", "../yolo11n"])
def test_another_name_is_refused_by_the_settings_key(name: str) -> None:
    """The operator finds the line to correct."""
    with pytest.raises(InvalidParameterError, match="official_models"):
        OfficialScanner([name], url=OFFICIAL_URL)


def test_every_name_is_one_that_ultralytics_publishes() -> None:
    """Contract with the installed release: names and default tag."""
    assert {f"{name}.pt" for name in OFFICIAL_MODELS} <= GITHUB_ASSETS_NAMES
    assert attempt_download_asset.__defaults__ is not None
    assert DEFAULT_TAG in attempt_download_asset.__defaults__
    sizes = {name: imgsz for name, (_, imgsz) in OFFICIAL_MODELS.items()}
    assert (sizes["yolo11n-cls"], sizes["yolo11n-obb"], sizes["yolov5n6u"]) == (224, 1024, 1280)


def test_one_name_is_found_by_itself() -> None:
    """As a scan of all finds it."""
    scanner = OfficialScanner(["yolo26n", "yolo11n"], url="http://mirror")
    assert scanner.scan_name("yolo11n") == [scanner.scan()[1]]
    assert scanner.scan_name("yolo26x") == []
