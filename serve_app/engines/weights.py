"""A model's tensors in one block of memory.

One block instead of some hundred allocations: opening is one copy to the device, and closing gives
all of it back at once, where the C library would keep what is scattered over its heap.
"""

import errno
import functools
import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

_CHANNELS_LAST_DIMS = 4
_LARGEST_ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a block one tensor lies.

    name: the first of the names that share it
    offset: bytes
    """

    name: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """Where in a block of `nbytes` bytes each tensor lies, by its name in the graph."""

    places: Mapping[str, Place]
    nbytes: int

    @property
    def distinct(self) -> Mapping[str, Place]:
        """The places without those of tied tensors, which share one with another name."""
        return {place.name: place for place in self.places.values()}


class Weights:
    """The tensors of one model by their names in the graph; owns their memory."""

    def __init__(self, layout: Layout, block: torch.Tensor) -> None:
        """See a block of bytes as tensors."""
        self.layout = layout
        self.block = block

    @functools.cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, as views of the block; made on first use."""
        return {name: _view(self.block, place) for name, place in self.layout.places.items()}

    @classmethod
    def pack(cls, layout: Layout, tensors: Mapping[str, torch.Tensor]) -> "Weights":
        """Copy tensors into one block on the CPU, in the numbers and the order of `layout`."""
        weights = cls(layout, allocate(layout.nbytes))
        place_tensors(tensors, weights)
        return weights

    def to(self, device: torch.device) -> "Weights":
        """Return these weights on `device`, in one copy; themselves if they are there."""
        block = self.block.to(device)
        return self if block is self.block else Weights(self.layout, block)

    def close(self) -> None:
        """Give the memory back."""
        self.__dict__["tensors"] = {}
        self.block = torch.empty(0)


def lay_out(
    tensors: Mapping[str, torch.Tensor],
    dtype_of: Callable[[str], torch.dtype],
    *,
    channels_last: bool,
) -> Layout:
    """Return places for these tensors, which may be meta tensors, the same for equal structures.

    They lie without gaps, those first whose size keeps what follows aligned: kernels are slower
    with operands that are not. Tensors that are one object get one place. `dtype_of` says in which
    numbers those are kept that are not whole.
    """
    first: dict[int, str] = {}
    for name in sorted(tensors):
        first.setdefault(id(tensors[name]), name)
    dtypes = {
        name: dtype_of(name) if tensors[name].is_floating_point() else tensors[name].dtype
        for name in first.values()
    }
    own: dict[str, Place] = {}
    end = 0
    for name in sorted(dtypes, key=lambda name: (-_alignment(tensors[name], dtypes[name]), name)):
        shape = tuple(tensors[name].shape)
        own[name] = Place(name, end, shape, _strides(shape, channels_last), dtypes[name])
        end += own[name].nbytes
    return Layout({name: own[first[id(tensor)]] for name, tensor in tensors.items()}, end)


def _alignment(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    """Return the largest power of two that divides the tensor's size, as far as it matters."""
    nbytes = tensor.numel() * dtype.itemsize
    return min(_LARGEST_ALIGNMENT, nbytes & -nbytes)


def place_tensors(tensors: Mapping[str, torch.Tensor], weights: Weights) -> None:
    """Copy each tensor to its place, turned into the numbers and the order that it has there."""
    for name in weights.layout.distinct:
        weights.tensors[name].copy_(tensors[name])


def allocate(nbytes: int) -> torch.Tensor:
    """Return a block straight from the kernel, whose pages leave the process once it is freed.

    Raises:
        MemoryError: there is no such block
    """
    return torch.frombuffer(_map(max(nbytes, 1)), dtype=torch.uint8)[:nbytes]


def _map(nbytes: int) -> mmap.mmap:
    populate = getattr(mmap, "MAP_POPULATE", 0)  # all pages at once, where the system can
    try:
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | populate)
    except OverflowError:  # no address space is that large
        raise MemoryError(f"{nbytes} bytes cannot be had") from None
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"{nbytes} bytes cannot be had") from None
        raise


@functools.lru_cache(4096)
def _strides(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    last = channels_last and len(shape) == _CHANNELS_LAST_DIMS
    memory_format = torch.channels_last if last else torch.contiguous_format
    # `.to` leaves alone what already counts as channels-last (1x1 kernels), as Ultralytics' does;
    # other strides there would choose other kernels, and round differently.
    return torch.empty(shape, device="meta").to(memory_format=memory_format).stride()


def _view(block: torch.Tensor, place: Place) -> torch.Tensor:
    flat = block[place.offset : place.offset + place.nbytes].view(place.dtype)
    return flat.as_strided(place.shape, place.stride)
