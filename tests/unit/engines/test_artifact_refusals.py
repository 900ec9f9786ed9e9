"""A file of prepared weights is believed only if it is what was written, and told so if not."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.engines import artifact
from serve_app.engines.artifact import (
    ArtifactError,
    ArtifactUnreadableError,
    read_artifact,
    read_header,
)
from serve_app.engines.base import Description, ModelInfo
from serve_app.engines.store import ArtifactStore
from serve_app.engines.structure import IndescribableError
from serve_app.engines.weights import Layout, Weights, allocate, lay_out
from serve_app.types import Task
from tests.support.checkpoints import CheckpointFolder
from tests.unit.engines.test_artifact import HEAD_DAMAGE, engine_with


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An empty store."""
    return ArtifactStore(tmp_path / "prepared", 2**30)


def prepared(checkpoints: CheckpointFolder, store: ArtifactStore) -> Path:
    """Return an artifact."""
    engine = engine_with(store)
    path = checkpoints("tiny-detect", imgsz=96)
    engine.prepare(path)
    found = store.find(engine._name(path))
    assert found is not None
    return found


@pytest.mark.parametrize("damage", HEAD_DAMAGE)
def test_damaged_header_is_not_believed(
    damage: Callable[[bytes], bytes], checkpoints: CheckpointFolder, store: ArtifactStore
) -> None:
    """Verification reads no more than that."""
    found = prepared(checkpoints, store)
    found.write_bytes(damage(found.read_bytes()))

    with pytest.raises(ArtifactError):
        read_header(found)


DEEP = "[" * 100_000


def forge(found: Path, spoil: Callable[[dict[str, Any]], object]) -> None:
    """Write another head before the tensors, with the checksum that it should have."""
    data = found.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:end])
    del table["__metadata__"]["head"]
    spoil(table)
    head = artifact._head(table.pop("__metadata__"), table)
    found.write_bytes(len(head).to_bytes(8, "little") + head + data[end:])


def forge_text(found: Path, rest: bytes) -> None:
    """Write a file of a head alone, with the checksum that it should have."""
    head = artifact._OPENING + f"{zlib.crc32(rest):08x}".encode() + rest
    found.write_bytes(len(head).to_bytes(8, "little") + head)


def spoil_word(name: str, word: object) -> Callable[[dict[str, Any]], object]:
    """Return what replaces a word of the metadata."""
    return lambda table: table["__metadata__"].update({name: word})


def spoil_tensor(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Return what replaces a fact of one tensor."""
    return lambda table: table["model.0.conv.weight"].update({name: value})


def spoil_imgsz(table: dict[str, Any]) -> None:
    """Give a picture no end."""
    description = json.loads(table["__metadata__"]["description"])
    description["imgsz"] = [float("inf"), 32]
    table["__metadata__"]["description"] = json.dumps(description)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_word("description", DEEP),
        spoil_imgsz,
        spoil_word("tied", "[1]"),
        spoil_word("tied", DEEP),
        spoil_word("tied", '{"a": []}'),
        spoil_word("signature", ["a"]),
        spoil_word("own_bytes", "many"),
        spoil_word("own_bytes", "4096"),
        spoil_tensor("shape", 2**70),
        spoil_tensor("shape", [2**40, 2**40]),
        spoil_tensor("shape", [-1]),
        spoil_tensor("dtype", ["F32"]),
        spoil_tensor("dtype", "F64"),
        spoil_tensor("data_offsets", None),
        lambda table: table.update(extra=7),
    ],
)
def test_hostile_content_is_refused(
    spoil: Callable[[dict[str, Any]], object], checkpoints: CheckpointFolder, store: ArtifactStore
) -> None:
    """Checksums are no signatures: whoever can write the folder can make them."""
    found = prepared(checkpoints, store)
    forge(found, lambda _table: None)
    read_artifact(found)
    forge(found, spoil)

    with pytest.raises(ArtifactError):
        read_artifact(found)


@pytest.mark.parametrize(
    "rest", [b"", b'"}}', b'"}', b'"},"a":' + DEEP.encode(), b'","structure":"\xff"}}']
)
def test_hostile_heads_are_refused(rest: bytes, tmp_path: Path) -> None:
    """Whatever the parser of JSON raises."""
    path = tmp_path / "forged.safetensors"
    forge_text(path, rest)

    for read in (read_header, read_artifact):
        with pytest.raises(ArtifactError):
            read(path)


def test_hostile_structure_is_refused(checkpoints: CheckpointFolder, store: ArtifactStore) -> None:
    """It is parsed apart, once a graph is to be built of it."""
    found = prepared(checkpoints, store)
    forge(found, spoil_word("structure", DEEP))

    with pytest.raises(ArtifactError):
        _ = read_artifact(found).structure


def test_length_is_checked_before_memory_is_taken(
    checkpoints: CheckpointFolder, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short file may say that it holds a terabyte."""
    found = prepared(checkpoints, store)
    found.write_bytes(found.read_bytes()[:-1])
    monkeypatch.delattr(artifact, "allocate")

    with pytest.raises(ArtifactError, match="length"):
        read_artifact(found)


def test_other_things_than_files_are_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be for ever."""
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)

    for read in (read_header, read_artifact):
        with pytest.raises(ArtifactError, match="no regular file"):
            read(path)


@pytest.mark.parametrize("path", ["/proc/self/mem", "/nowhere/at/all", "/"])
def test_what_cannot_be_read_is_not_called_damaged(path: str) -> None:
    """An error of the disk, a file that has just vanished: nothing is known of the content."""
    for read in (read_header, read_artifact):
        with pytest.raises(ArtifactUnreadableError):
            read(Path(path))


def test_lack_of_memory_spoils_nothing(
    checkpoints: CheckpointFolder, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact is sound, and is used as soon as there is memory."""
    found = prepared(checkpoints, store)
    engine = engine_with(store)
    with monkeypatch.context() as patched:
        patched.setattr(artifact, "allocate", lambda _nbytes: allocate(2**60))

        with pytest.raises(MemoryError):
            engine.open(checkpoints("tiny-detect", imgsz=96))

    assert read_artifact(found).header.own_bytes > 0


def test_lack_of_memory_is_not_called_damage(
    checkpoints: CheckpointFolder, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor while the header is parsed."""
    found = prepared(checkpoints, store)

    def fail(_plain: object) -> None:
        raise MemoryError

    monkeypatch.setattr(artifact, "decode_description", fail)
    with pytest.raises(MemoryError):
        read_header(found)


def write(path: Path, weights: Weights, structure: object = None) -> None:
    """Write an artifact of some weights."""
    info = ModelInfo(task=Task.DETECT, names={0: "a"}, imgsz=(32, 32), stride=32)
    description = Description(
        info=info, end2end=False, dynamic=True, rtdetr=False, kpt_shape=None, transforms=None
    )
    artifact.write_artifact(
        path,
        weights,
        description,
        structure,
        signature="0" * 16,
        graph_bytes=1,
        channels_last=False,
    )


@pytest.mark.parametrize(
    ("tensor", "structure"),
    [(torch.zeros(3, dtype=torch.float64), None), (torch.zeros(3), "a" * 2**24)],
    ids=["numbers", "size"],
)
def test_what_could_not_be_read_is_not_written(
    tensor: torch.Tensor, structure: object, tmp_path: Path
) -> None:
    """Else it would be thrown away and made anew each time."""
    layout = lay_out({"a": tensor}, lambda _name: tensor.dtype, channels_last=False)
    path = tmp_path / "new.safetensors"

    with pytest.raises(IndescribableError):
        write(path, Weights.pack(layout, {"a": tensor}), structure)

    assert not path.exists()


def test_weights_without_numbers_are_read_again(tmp_path: Path) -> None:
    """An empty block is one too."""
    path = tmp_path / "new.safetensors"
    write(path, Weights.pack(Layout({}, 0), {}))

    assert read_artifact(path).weights.layout.nbytes == read_header(path).own_bytes == 0


def test_file_of_another_tool_is_no_artifact(tmp_path: Path) -> None:
    """A safetensors file without our header."""
    path = tmp_path / "other.safetensors"
    table = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(table).to_bytes(8, "little") + table + b"\0" * 4)

    for read in (read_header, read_artifact):
        with pytest.raises(ArtifactError, match="no header of ours"):
            read(path)
