"""A model's tensors in one block of memory.

One block instead of some hundred allocations: opening is one copy to the device, and closing gives
all of it back at once, where the C library would keep what is scattered over its heap.
"""

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


class Weights:
    """The tensors of one model by their names in the graph; owns their memory."""

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], device: torch.device, *, channels_last: bool
    ) -> None:
        """Copy `tensors` into one block on `device`; tensors that are one object stay one."""
        places, self.nbytes = _lay_out(tensors, channels_last=channels_last)
        block = _allocate(self.nbytes)
        for name, place in places.items():
            _view(block, place).copy_(tensors[name])
        block = block.to(device)
        self.tensors = {name: _view(block, place) for name, place in places.items()}

    def close(self) -> None:
        """Give the memory back."""
        self.tensors = {}


def weight_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes that `Weights` takes for these tensors, which may be meta tensors."""
    return _lay_out(tensors, channels_last=False)[1]


def _lay_out(
    tensors: Mapping[str, torch.Tensor], *, channels_last: bool
) -> tuple[dict[str, _Place], int]:
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
    return places, end


def _strides(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    last = channels_last and len(shape) == _CHANNELS_LAST_DIMS
    memory_format = torch.channels_last if last else torch.contiguous_format
    # `.to` leaves alone what already counts as channels-last (1x1 kernels), as Ultralytics' does;
    # other strides there would choose other kernels, and round differently.
    return torch.empty(shape, device="meta").to(memory_format=memory_format).stride()


def _allocate(nbytes: int) -> torch.Tensor:
    # Straight from the kernel: freed pages leave the process at once, whatever malloc's thresholds.
    return torch.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype=torch.uint8)


def _view(block: torch.Tensor, place: _Place) -> torch.Tensor:
    numel = 1
    for side in place.shape:
        numel *= side
    size = numel * place.dtype.itemsize
    flat = block[place.offset : place.offset + size].view(place.dtype)
    return flat.as_strided(place.shape, place.stride)
