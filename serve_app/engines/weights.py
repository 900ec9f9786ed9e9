"""A model's tensors in one block of memory.

One block instead of some hundred allocations: opening is one copy to the device, and closing gives
all of it back at once, where the C library would keep what is scattered over its heap.
"""

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import torch

_ALIGNMENT = 64
_CHANNELS_LAST_DIMS = 4


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the block one tensor lies. offset: bytes."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Layout:
    """Where in a block of `nbytes` bytes each tensor lies, by its name in the graph."""

    places: Mapping[str, _Place]
    nbytes: int


class Weights:
    """The tensors of one model by their names in the graph; owns their memory."""

    def __init__(self, layout: Layout, block: torch.Tensor) -> None:
        """See a block of bytes as tensors."""
        self.layout = layout
        self.block = block
        self.tensors = {name: _view(block, place) for name, place in layout.places.items()}

    @classmethod
    def pack(cls, tensors: Mapping[str, torch.Tensor], *, channels_last: bool) -> "Weights":
        """Copy tensors into one block on the CPU; tensors that are one object stay one."""
        layout = lay_out(tensors, channels_last=channels_last)
        weights = cls(layout, allocate(layout.nbytes))
        for name, tensor in tensors.items():
            weights.tensors[name].copy_(tensor)
        return weights

    def to(self, device: torch.device) -> "Weights":
        """Return these weights on `device`, in one copy; themselves if they are there."""
        block = self.block.to(device)
        return self if block is self.block else Weights(self.layout, block)

    def close(self) -> None:
        """Give the memory back."""
        self.tensors = {}
        self.block = torch.empty(0)


def lay_out(tensors: Mapping[str, torch.Tensor], *, channels_last: bool) -> Layout:
    """Return places for these tensors, which may be meta tensors."""
    places: dict[str, _Place] = {}
    seen: dict[int, _Place] = {}
    end = 0
    for name, tensor in tensors.items():
        place = seen.get(id(tensor))
        if place is None:
            shape = tuple(tensor.shape)
            place = _Place(end, shape, _strides(shape, channels_last), tensor.dtype)
            seen[id(tensor)] = place
            size = tensor.numel() * tensor.element_size()
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        places[name] = place
    return Layout(places, end)


def allocate(nbytes: int) -> torch.Tensor:
    """Return a block straight from the kernel, whose pages leave the process once it is freed."""
    return torch.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype=torch.uint8)[:nbytes]


def _strides(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    last = channels_last and len(shape) == _CHANNELS_LAST_DIMS
    memory_format = torch.channels_last if last else torch.contiguous_format
    # `.to` leaves alone what already counts as channels-last (1x1 kernels), as Ultralytics' does;
    # other strides there would choose other kernels, and round differently.
    return torch.empty(shape, device="meta").to(memory_format=memory_format).stride()


def _view(block: torch.Tensor, place: _Place) -> torch.Tensor:
    size = math.prod(place.shape) * place.dtype.itemsize
    flat = block[place.offset : place.offset + size].view(place.dtype)
    return flat.as_strided(place.shape, place.stride)
