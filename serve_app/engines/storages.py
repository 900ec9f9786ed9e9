"""Reads the numbers of a checkpoint that was loaded without them, and only those of its model.

A file may carry far more than its model, such as the state of an optimizer: none of that is read.
The numbers are copied, not mapped: a mapped file that is overwritten would end the process.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from serve_app.errors import ModelBrokenError

_MAX_PLAIN_ELEMENTS = 4096
_DAMAGED = "the checkpoint is truncated or corrupt; copy it again"


def read_plain_tensors(module: nn.Module, path: Path) -> None:
    """Fill in tensors such as `Detect.stride`, which are structure although they are tensors.

    Raises:
        ModelBrokenError: one is larger than any structure needs
    """
    storages = _Storages(path)
    for sub in module.modules():
        for name, value in sub.__dict__.items():
            if isinstance(value, torch.Tensor):
                if value.numel() > _MAX_PLAIN_ELEMENTS:
                    raise ModelBrokenError(
                        f"the checkpoint keeps {value.numel()} numbers outside its parameters"
                    )
                sub.__dict__[name] = storages.read(value).clone()


def read_weights(module: nn.Module, path: Path) -> None:
    """Fill in the parameters and buffers; those that are one tensor, or share one, still do."""
    storages = _Storages(path)
    filled: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # both kept, so that ids stay theirs
    for sub in module.modules():
        stores: Any = (sub._parameters, sub._buffers)
        for store in stores:
            for name, value in store.items():
                if value is not None:
                    if id(value) not in filled:
                        filled[id(value)] = value, _like(value, storages.read(value))
                    store[name] = filled[id(value)][1]


def _like(value: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    is_parameter = isinstance(value, nn.Parameter)
    return nn.Parameter(numbers, requires_grad=False) if is_parameter else numbers


class _Storages:
    """The storages of one file, each read when a tensor of it is first asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_bytes = path.stat().st_size
        self._blocks: dict[tuple[int, int], torch.Tensor] = {}

    def read(self, value: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the CPU with the numbers of `value`, a meta tensor."""
        storage = value.untyped_storage()
        place = storage._checkpoint_offset or 0, storage.nbytes()
        if place not in self._blocks:
            self._blocks[place] = self._read_block(*place)
        flat = self._blocks[place].view(value.dtype)
        return flat.as_strided(value.shape, value.stride(), value.storage_offset())

    def _read_block(self, offset: int, nbytes: int) -> torch.Tensor:
        if nbytes > self._file_bytes:
            raise ModelBrokenError(_DAMAGED)
        block = torch.empty(nbytes, dtype=torch.uint8)
        with self._path.open("rb", buffering=0) as file:
            file.seek(offset)
            if file.readinto(block.numpy().data) != nbytes:
                raise ModelBrokenError(_DAMAGED)
        return block
