"""Prepared weights: what a checkpoint becomes once, so that it opens in milliseconds ever after.

One safetensors file: the tensors as the device takes them (batch norm folded, final numbers and
memory order), and in its metadata what the model says of itself, the structure of its graph, and
two checksums. One covers all that stands before the tensors, so that this much can be believed
without reading on; it covers the other, which covers the tensors. Nothing in it can run code.
"""

import hashlib
import io
import json
import os
import stat
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
from serve_app.engines.guard import is_out_of_memory
from serve_app.engines.structure import IndescribableError
from serve_app.engines.weights import Layout, Weights, allocate, lay_out

_FORMAT = 2
_OPENING = b'{"__metadata__": {"head": "'  # and then the checksum of the rest of the head
_CHECKSUM_DIGITS = 8
_LENGTH_BYTES = 8
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


class ArtifactUnreadableError(ArtifactError):
    """A file could not be read now; nothing is known of what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an artifact says before its tensors.

    structure: JSON of the graph's structure, parsed only when the graph is not known yet
    own_bytes: the weights' size in memory
    graph_bytes: what a pass needs beyond them, estimated
    tied: names that share the tensor of another name
    checksum: CRC-32 of the tensors
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
        """The graph's structure as plain data.

        Raises:
            ArtifactError: it is none
        """
        with _parsing():
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
        IndescribableError: there is what plain data cannot say, or too much of it
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
        "checksum": _checksum(weights.block.numpy()),
    }
    head = _head(content, _table(weights.layout, channels_last))
    data: Any = weights.block.numpy()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(_LENGTH_BYTES, "little"))
        file.write(head)
        file.write(data)


def _table(layout: Layout, channels_last: bool) -> dict[str, Any]:
    unknown = {place.dtype for place in layout.places.values()} - _NAMES.keys()
    if unknown:
        raise IndescribableError(f"tensors of {unknown.pop()} are not prepared")
    return {
        name: {
            "dtype": _NAMES[place.dtype],
            "shape": _in_memory_order(place.shape, channels_last),
            "data_offsets": [place.offset, place.offset + place.nbytes],
        }
        for name, place in layout.distinct.items()
    }


def _head(content: Mapping[str, str], table: Mapping[str, Any]) -> bytes:
    """Return the JSON before the tensors, its own checksum at a fixed place."""
    digits = "0" * _CHECKSUM_DIGITS
    head = json.dumps({"__metadata__": {"head": digits, **content}, **table}).encode()
    head += b" " * (-len(head) % _ALIGNMENT)
    if len(head) > _MAX_TABLE_BYTES:
        raise IndescribableError(f"its description takes more than {_MAX_TABLE_BYTES} bytes")
    covered = head[len(_OPENING) + _CHECKSUM_DIGITS :]
    return _OPENING + _checksum(covered).encode() + covered


def read_header(path: Path) -> Header:
    """Read what stands before the tensors, and check that it is what was written.

    Raises:
        ArtifactUnreadableError: it cannot be read now
        ArtifactError: it is no artifact; whether its tensors are, only `read_artifact` tells
    """
    with _opened(path) as file:
        return _header(_read_table(file))


def read_artifact(path: Path) -> Artifact:
    """Read all of an artifact into memory of its own.

    Raises:
        ArtifactUnreadableError: it cannot be read now
        ArtifactError: it is no artifact, or is not what was written
        MemoryError: there is no memory for it
    """
    with _opened(path) as file:
        table = _read_table(file)
        header = _header(table)
        with _parsing():
            layout = _layout(table, header)
        if file.tell() + layout.nbytes != os.fstat(file.fileno()).st_size:
            raise ArtifactError("its length is wrong")
        block = allocate(layout.nbytes)
        _fill(file, block)
    if _checksum(block.numpy()) != header.checksum:
        raise ArtifactError("its checksum is wrong")
    return Artifact(header, Weights(layout, block))


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    """Open a regular file; whatever else has its name is not waited for."""
    try:
        with io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as f:
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                raise ArtifactError("it is no regular file")
            yield f
    except OSError as error:
        if is_out_of_memory(error):
            raise MemoryError("no memory to read prepared weights") from None
        raise ArtifactUnreadableError(f"it cannot be read: {error.strerror}") from None


@contextmanager
def _parsing() -> Iterator[None]:
    """Turn whatever odd content raises into `ArtifactError`."""
    try:
        yield
    except (ArtifactError, MemoryError):
        raise
    except Exception as error:
        raise ArtifactError(f"its content is malformed: {type(error).__name__}") from None


def _read_table(file: io.FileIO) -> dict[str, Any]:
    """Read the head of a safetensors file: its length in 8 bytes, then JSON.

    By hand, since the library copies each tensor by itself, which takes several times as long as
    reading all of them at once.
    """
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 0 < length <= _MAX_TABLE_BYTES:
        raise ArtifactError("it is no safetensors file")
    head = file.read(length)
    if not head.startswith(_OPENING):
        raise ArtifactError("it has no header of ours")
    start = len(_OPENING) + _CHECKSUM_DIGITS
    if head[len(_OPENING) : start] != _checksum(head[start:]).encode():
        raise ArtifactError("the checksum of its header is wrong")
    with _parsing():
        table: dict[str, Any] = json.loads(head)
    return table


def _fill(file: io.FileIO, block: torch.Tensor) -> None:
    """Read until the block is full: the kernel reads 2 GiB at once at most."""
    data: Any = block.numpy()
    view = memoryview(data)
    while view:
        count = file.readinto(view)
        if not count:
            raise ArtifactError("its length is wrong")
        view = view[count:]


def _layout(table: Mapping[str, Any], header: Header) -> Layout:
    """Return where the tensors lie, if it is where ours would."""
    entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
    tensors = {name: _blank(entry, header.channels_last) for name, entry in entries.items()}
    tensors.update({name: tensors[first] for name, first in header.tied.items()})
    layout = lay_out(tensors, lambda n: tensors[n].dtype, channels_last=header.channels_last)
    for name, place in layout.distinct.items():
        if entries[name]["data_offsets"] != [place.offset, place.offset + place.nbytes]:
            raise ArtifactError("its tensors lie in another order")
    if layout.nbytes != header.own_bytes:
        raise ArtifactError("its tensors are of another size than its header says")
    return layout


def _blank(entry: Mapping[str, Any], channels_last: bool) -> torch.Tensor:
    shape = entry["shape"]
    if channels_last and len(shape) == _CHANNELS_LAST_DIMS:
        shape = [shape[index] for index in (0, 3, 1, 2)]
    return torch.empty(shape, dtype=_DTYPES[entry["dtype"]], device="meta")


def _header(table: Mapping[str, Any]) -> Header:
    with _parsing():
        content = table["__metadata__"]
        if not all(isinstance(word, str) for word in content.values()):
            raise ArtifactError("it has no header of ours")
        return Header(
            description=decode_description(json.loads(content["description"])),
            signature=content["signature"],
            structure=content["structure"],
            own_bytes=int(content["own_bytes"]),
            graph_bytes=int(content["graph_bytes"]),
            channels_last=bool(json.loads(content["channels_last"])),
            tied=dict(json.loads(content["tied"])),
            checksum=content["checksum"],
        )


def _checksum(data: Any) -> str:
    """Return the CRC-32 of bytes, in eight digits."""
    return f"{zlib.crc32(data):08x}"


def _in_memory_order(shape: tuple[int, ...], channels_last: bool) -> list[int]:
    """Return the shape with its dimensions as they lie in memory: files know no strides."""
    if channels_last and len(shape) == _CHANNELS_LAST_DIMS:
        return [shape[index] for index in (0, 2, 3, 1)]
    return list(shape)
