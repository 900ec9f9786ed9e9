"""Devices are named and sized before anything runs on them."""

from pathlib import Path

import psutil
import pytest
import torch

from serve_app.engines.devices import device_total_bytes, read_limit, resolve_device


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the CPU otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda:0"


def test_named_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given back in full; what is not there is refused."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("cuda") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match="found 2"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "tpu:0"])
def test_other_names_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message tells what is expected."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:n|found 0"):
        resolve_device(name)


def test_memory_of_the_cpu_is_what_this_process_may_use() -> None:
    """No more than the machine has."""
    assert 0 < device_total_bytes("cpu") <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("text", "limit"), [("1073741824\n", 2**30), ("max\n", None), ("", None), (None, None)]
)
def test_limits_of_control_groups(text: str | None, limit: int | None, tmp_path: Path) -> None:
    """A number, or none."""
    path = tmp_path / "memory.max"
    if text is not None:
        path.write_text(text)
    assert read_limit(path) == limit
