"""A compiled model as one file: what OpenVINO made of a model, and what the model says of itself.

A safetensors file, like prepared weights, so that one store keeps both: the compiled model is one
tensor of bytes, and the metadata hold the description, figures and a checksum over all of it.
"""

import hashlib
import json
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ultralytics
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from serve_app.engines.base import Description
from serve_app.engines.description import decode_description, encode_description
from serve_app.engines.guard import is_out_of_memory

_FORMAT = 1
_KEY = "compiled"


class CompiledError(ValueError):
    """A file holds no compiled model, or is not whole."""


class CompiledUnreadableError(CompiledError):
    """A file could not be read now; nothing is known of what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compiled:
    """A compiled model outside of its engine.

    blob: what the engine imports, uint8
    own_bytes: estimate of what the model will hold in memory
    """

    description: Description
    own_bytes: int
    blob: npt.NDArray[np.uint8]


def compiled_name(content: str, *facts: object) -> str:
    """Return the file name for a model file of this SHA-256.

    facts: all else that a compiled model depends on: engine, version, processor, precision
    """
    versions = repr((_FORMAT, ultralytics.__version__, *facts))
    return f"{content[:32]}-{hashlib.sha256(versions.encode()).hexdigest()[:12]}.safetensors"


def write_compiled(path: Path, compiled: Compiled) -> None:
    """Write a compiled model.

    Raises:
        IndescribableError: the description holds what plain data cannot say
        OSError: the disk refuses
    """
    content = {
        "description": json.dumps(encode_description(compiled.description)),
        "own_bytes": str(compiled.own_bytes),
    }
    content["checksum"] = _checksum(content, compiled.blob)
    try:
        save_file({_KEY: compiled.blob}, path, metadata=content)
    except SafetensorError as error:
        raise OSError(str(error)) from None


def read_compiled(path: Path) -> Compiled:
    """Read a compiled model into memory.

    Raises:
        CompiledUnreadableError: it cannot be read now
        CompiledError: it is none, or is not what was written
        MemoryError: there is no memory for it
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # the library would wait for whoever writes it
            raise CompiledError("it is no regular file")
        with safe_open(path, framework="numpy") as file:
            content: Mapping[str, str] = file.metadata() or {}
            blob: Any = file.get_tensor(_KEY)
        if blob.dtype != np.uint8 or blob.ndim != 1:
            raise CompiledError("it holds no compiled model")
        if content["checksum"] != _checksum(content, blob):
            raise CompiledError("its checksum is wrong")
        return Compiled(
            description=decode_description(json.loads(content["description"])),
            own_bytes=int(content["own_bytes"]),
            blob=blob,
        )
    except CompiledError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError("no memory to read a compiled model") from None
        kind = CompiledUnreadableError if isinstance(error, OSError) else CompiledError
        raise kind(f"it cannot be read: {type(error).__name__}") from None


def _checksum(content: Mapping[str, str], blob: npt.NDArray[np.uint8]) -> str:
    words = sorted((name, content[name]) for name in content.keys() - {"checksum"})
    return f"{zlib.crc32(blob.data, zlib.crc32(repr(words).encode())):08x}"
