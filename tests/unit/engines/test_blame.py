"""A machine at its end, or a disk that is away, is not blamed on the model."""

import errno
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from serve_app.engines import checkpoint, openvino_files
from serve_app.engines.archive import check_archive, check_records
from serve_app.engines.checkpoint import read_structure
from serve_app.engines.guard import guarded
from serve_app.engines.onnx_engine import OnnxEngine
from serve_app.engines.onnx_metadata import read_metadata
from serve_app.engines.openvino_engine import OpenVinoEngine
from serve_app.engines.openvino_files import Readable, read_graph
from serve_app.errors import ModelBrokenError, OverloadedError, SourceUnavailableError
from serve_app.types import ModelFormat
from tests.support.checkpoints import CheckpointFolder


def _raises(error: Exception) -> Callable[..., None]:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    return fail


def _system(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize("read", [check_archive, check_records, read_structure])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EIO, SourceUnavailableError),
        (errno.ESTALE, SourceUnavailableError),
        (errno.EMFILE, OverloadedError),
        (errno.EINVAL, ModelBrokenError),  # a damaged offset
    ],
)
def test_an_archive_that_the_disk_refuses(
    read: Callable[[Path], object],
    code: int,
    expected: type[Exception],
    checkpoints: CheckpointFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is no damaged one."""
    path = checkpoints("tiny-detect", imgsz=96)
    monkeypatch.setattr(zipfile, "ZipFile", _raises(_system(code)))
    with pytest.raises(expected):
        guarded(read, path)


NO_DESCRIPTORS = RuntimeError(
    "open file failed because of errno 24 on fopen: Too many open files, file path: model.pt"
)


def test_a_checkpoint_that_torch_cannot_open(
    checkpoints: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in the reading that happens."""
    path = checkpoints("tiny-detect", imgsz=96)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_read_pickle", _raises(NO_DESCRIPTORS))
        with pytest.raises(OverloadedError):
            guarded(read_structure, path)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", _raises(NO_DESCRIPTORS))
        with pytest.raises(OverloadedError):
            guarded(read_structure, path)
    monkeypatch.setattr(
        torch.serialization,
        "get_unsafe_globals_in_checkpoint",
        _raises(NO_DESCRIPTORS),
    )
    with pytest.raises(OverloadedError):
        guarded(read_structure, path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("std::bad_alloc"), OverloadedError),
        (RuntimeException("[ONNXRuntimeError] : 6 : system error number 24"), OverloadedError),
        (
            RuntimeException("[ONNXRuntimeError] : 6 : system error number 5"),
            SourceUnavailableError,
        ),
        (RuntimeException("[ONNXRuntimeError] : 6 : no such operator"), ModelBrokenError),
    ],
)
def test_an_onnx_session_that_finds_nothing_left(
    error: Exception, expected: type[Exception], exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the rest is the file's fault."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", _raises(error))
    with pytest.raises(expected):
        guarded(OnnxEngine().open, exported)


def test_onnx_metadata_that_cannot_be_read(tmp_path: Path) -> None:
    """Ultralytics takes such a file for one without any."""
    with pytest.raises(SourceUnavailableError):
        guarded(read_metadata, tmp_path / "gone.onnx")


def test_openvino_that_finds_nothing_left(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on compiling a graph, nor on reading it."""
    no_memory = _raises(RuntimeError("Exception from src/core.cpp:93: std::bad_alloc"))
    engine = OpenVinoEngine(ModelFormat.ONNX)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_core", SimpleNamespace(compile_model=no_memory))
        with pytest.raises(OverloadedError):
            guarded(engine.open, exported)
    readable = {
        ModelFormat.ONNX: Readable(openvino_files.READABLE[ModelFormat.ONNX].inspect, no_memory)
    }
    monkeypatch.setattr(openvino_files, "READABLE", readable)
    with pytest.raises(OverloadedError):
        guarded(read_graph, ModelFormat.ONNX, exported)
