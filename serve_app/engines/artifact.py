"""Prepared weights: what a checkpoint becomes once, so that it opens in milliseconds ever after.

One safetensors file: the tensors as the device takes them (batch norm folded, final numbers and
memory order), and in its metadata what the model says of itself, the structure of its graph, and a
checksum. Nothing in it can run code, and nothing is believed that the checksum does not cover.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import ultralytics

from serve_app.engines.base import Description
from serve_app.engines.description import decode_description, encode_description
from serve_app.engines.structure import IndescribableError
from serve_app.engines.weights import Layout, Weights, allocate, lay_out

_FORMAT = 1
_MAX_TABLE_BYTES = 16 * 2**20
_CHANNELS_LAST_DIMS = 4
_ALIGNMENT = 8
_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class ArtifactError(ValueError):
    """A file is no artifact, or is not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an artifact says before its tensors.

    structure: JSON of the graph's structure, parsed only when the graph is not known yet
    own_bytes: the weights' size in memory
    graph_bytes: what a pass needs beyond them, estimated
    tied: names that share the tensor of another name
    checksum: CRC-32 of all of the above and the tensors
    """

    description: Description
    signature: str
    structure: str
    own_bytes: int
    graph_bytes: int
    channels_last: bool
    tied: Mapping[str, str]
    checksum: str


@dataclass(frozen=True)
class Artifact:
    """A whole artifact, its weights on the CPU."""

    header: Header
    weights: Weights

    @cached_property
    def structure(self) -> Any:
        """The graph's structure as plain data."""
        return json.loads(self.header.structure)


def artifact_name(content: str, dtype: torch.dtype, *, channels_last: bool) -> str:
    """Return the file name for a checkpoint of this SHA-256, for these numbers and libraries."""
    versions = (_FORMAT, str(dtype), channels_last, torch.__version__, ultralytics.__version__)
    return f"{content[:32]}-{hashlib.sha256(repr(versions).encode()).hexdigest()[:12]}.safetensors"


def write_artifact(
    path: Path,
    weights: Weights,
    description: Description,
    structure: Any,
    *,
    signature: str,
    graph_bytes: int,
    channels_last: bool,
) -> None:
    """Write weights that lie on the CPU.

    By hand, as it is read: safetensors' own writer would put the tensors into another order.

    Raises:
        IndescribableError: the description holds what plain data cannot say
        OSError: the disk refuses
    """
    places = weights.layout.places
    content = {
        "description": json.dumps(encode_description(description)),
        "signature": signature,
        "structure": json.dumps(structure),
        "own_bytes": str(weights.layout.nbytes),
        "graph_bytes": str(graph_bytes),
        "channels_last": json.dumps(channels_last),
        "tied": json.dumps({n: place.name for n, place in places.items() if n != place.name}),
    }
    content["checksum"] = _checksum(content, weights.block)
    table: dict[str, Any] = {"__metadata__": content}
    for name, place in weights.layout.distinct.items():
        table[name] = {
            "dtype": _NAMES[place.dtype],
            "shape": _in_memory_order(place.shape, channels_last),
            "data_offsets": [place.offset, place.offset + place.nbytes],
        }
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % _ALIGNMENT)
    data: Any = weights.block.numpy()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little"))
        file.write(head)
        file.write(data)


def read_header(path: Path) -> Header:
    """Read what stands before the tensors.

    Raises:
        ArtifactError: it is no artifact; whether it is whole, only `read_artifact` tells
    """
    with _opened(path) as file:
        return _header(_read_table(file).get("__metadata__"))


def read_artifact(path: Path) -> Artifact:
    """Read all of an artifact into memory of its own.

    Raises:
        ArtifactError: it is no artifact, or is not what was written
    """
    with _opened(path) as file:
        table = _read_table(file)
        content = table.pop("__metadata__", None)
        header = _header(content)
        layout = _layout(table, header)
        block = allocate(layout.nbytes)
        view: Any = block.numpy()
        if file.readinto(view) != layout.nbytes or file.read(1):
            raise ArtifactError("its length is wrong")
    if _checksum(content, block) != header.checksum:
        raise ArtifactError("its checksum is wrong")
    return Artifact(header, Weights(layout, block))


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    try:
        with io.FileIO(path) as file:
            yield file
    except OSError as error:
        raise ArtifactError(f"it cannot be read: {error.strerror}") from None


def _read_table(file: io.FileIO) -> dict[str, Any]:
    """Read the head of a safetensors file: its length in 8 bytes, then JSON.

    By hand, since the library copies each tensor by itself, which takes several times as long as
    reading all of them at once.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= _MAX_TABLE_BYTES:
        raise ArtifactError("it is no safetensors file")
    try:
        table: dict[str, Any] = json.loads(file.read(length))
    except ValueError:
        raise ArtifactError("its table is no JSON") from None
    if not isinstance(table, dict):
        raise ArtifactError("its table is none")
    return table


def _layout(table: Mapping[str, Any], header: Header) -> Layout:
    """Return where the tensors lie, if it is where ours would."""
    try:
        tensors = {name: _blank(entry, header.channels_last) for name, entry in table.items()}
        tensors.update({name: tensors[first] for name, first in header.tied.items()})
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise ArtifactError("its table is malformed") from None
    layout = lay_out(tensors, lambda n: tensors[n].dtype, channels_last=header.channels_last)
    for name, place in layout.distinct.items():
        if table[name]["data_offsets"] != [place.offset, place.offset + place.nbytes]:
            raise ArtifactError("its tensors lie in another order")
    return layout


def _blank(entry: Mapping[str, Any], channels_last: bool) -> torch.Tensor:
    shape = entry["shape"]
    if channels_last and len(shape) == _CHANNELS_LAST_DIMS:
        shape = [shape[index] for index in (0, 3, 1, 2)]
    return torch.empty(shape, dtype=_DTYPES[entry["dtype"]], device="meta")


def _header(content: Mapping[str, str] | None) -> Header:
    try:
        assert content is not None  # noqa: S101 - caught below
        return Header(
            description=decode_description(json.loads(content["description"])),
            signature=content["signature"],
            structure=content["structure"],
            own_bytes=int(content["own_bytes"]),
            graph_bytes=int(content["graph_bytes"]),
            channels_last=bool(json.loads(content["channels_last"])),
            tied=json.loads(content["tied"]),
            checksum=content["checksum"],
        )
    except (AssertionError, KeyError, TypeError, ValueError, IndescribableError) as error:
        raise ArtifactError(f"it has no header of ours: {type(error).__name__}") from None


def _checksum(content: Mapping[str, str], block: torch.Tensor) -> str:
    words = sorted((name, content[name]) for name in content.keys() - {"checksum"})
    data: Any = block.numpy()
    return f"{zlib.crc32(data, zlib.crc32(repr(words).encode())):08x}"


def _in_memory_order(shape: tuple[int, ...], channels_last: bool) -> list[int]:
    """Return the shape with its dimensions as they lie in memory: files know no strides."""
    if channels_last and len(shape) == _CHANNELS_LAST_DIMS:
        return [shape[index] for index in (0, 2, 3, 1)]
    return list(shape)
