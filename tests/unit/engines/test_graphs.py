"""A graph's signature tells structures apart by all that steers a forward pass."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from serve_app.engines.graphs import GraphPool, dismantle, sign, take_tensors


class Block(nn.Module):
    """Something with every kind of attribute that networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.act = torch.nn.functional.relu
        self.stride = torch.tensor([8.0, 16.0])
        self.kernel = (3, 3)
        self.options = {"scale": 1.0}


def change_attribute(block: Block) -> None:
    """Another kernel."""
    block.kernel = (5, 5)


def change_nested(block: Block) -> None:
    """Another option."""
    block.options["scale"] = 2.0


def change_tensor(block: Block) -> None:
    """Another stride: a tensor that is structure."""
    block.stride = torch.tensor([8.0, 32.0])


def change_function(block: Block) -> None:
    """Another activation, kept as a function."""
    block.act = torch.nn.functional.silu


def change_type(block: Block) -> None:
    """Another module with the same parameters."""
    block.norm.__class__ = nn.BatchNorm1d  # type: ignore[assignment]


def change_shape(block: Block) -> None:
    """Another number of channels."""
    block.conv.weight = nn.Parameter(torch.zeros(8, 3, 5, 5))


def change_dtype(block: Block) -> None:
    """Another precision."""
    block.norm.half()


def drop_parameter(block: Block) -> None:
    """No bias."""
    block.conv.bias = None


def change_submodule_flag(block: Block) -> None:
    """A dilation deep inside."""
    block.conv.dilation = (2, 2)


def leave_training(block: Block) -> None:
    """Batch norm works in another way in evaluation."""
    block.norm.eval()


def swap_forward(block: Block) -> None:
    """A method put into another's place, as fusing does."""
    block.__dict__["forward"] = block.extra_repr


CHANGES = [
    change_attribute,
    change_nested,
    change_tensor,
    change_function,
    change_type,
    change_shape,
    change_dtype,
    drop_parameter,
    change_submodule_flag,
    leave_training,
    swap_forward,
]


def test_equal_structures_have_one_signature_whatever_their_weights() -> None:
    """Weights are not part of it, on no device."""
    first, second = Block(), Block()

    assert sign(first) == sign(second)
    take_tensors(second)
    first_root = {name: first.__dict__[name] for name in ("kernel",)}
    assert first_root == {"kernel": (3, 3)}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_structural_change_changes_the_signature(change: Callable[[Any], None]) -> None:
    """Two different structures never share."""
    plain, changed = nn.Sequential(Block()), nn.Sequential(Block())
    change(changed[0])

    assert sign(plain) != sign(changed)


def test_what_is_not_understood_is_never_shared() -> None:
    """An object of an unknown kind makes every signature its own."""
    block = Block()
    block.helper = object()  # type: ignore[assignment]

    assert sign(block) != sign(block)


def test_taking_tensors_leaves_a_skeleton() -> None:
    """Parameters and buffers go to the meta device; plain tensors stay."""
    whole = nn.Sequential(Block())

    taken = take_tensors(whole)

    assert set(taken) == {name for name, _ in block_names()}
    assert all(tensor.is_meta for tensor in whole.parameters())
    assert all(tensor.is_meta for tensor in whole.buffers())
    assert not whole[0].stride.is_meta
    assert not any(tensor.is_meta for tensor in taken.values())


def block_names() -> list[tuple[str, torch.Tensor]]:
    """Return the names of a fresh block's tensors."""
    return list(nn.Sequential(Block()).state_dict().items())


def test_tied_parameters_stay_one_tensor() -> None:
    """They take their memory once."""
    whole = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    whole[1].weight = whole[0].weight

    taken = take_tensors(whole)

    assert taken["0.weight"] is taken["1.weight"]


def test_pool_keeps_the_first_and_takes_the_next_apart() -> None:
    """Equal structures get the same graph; the superfluous module frees itself."""
    pool = GraphPool()
    first = nn.Sequential(nn.Conv2d(3, 4, 1))
    second = deepcopy(first)
    for module in (first, second):
        module[0].__dict__["extra"] = module[0].extra_repr
        take_tensors(module)

    graph = pool.adopt(first)

    assert pool.adopt(second) is graph
    assert "extra" not in second[0].__dict__
    assert len(pool) == 1


def test_dismantling_breaks_cycles() -> None:
    """`m.forward = m.forward_fuse` points a module at itself."""
    block: Any = Block()
    block.forward = block.extra_repr

    dismantle(block)

    assert "forward" not in block.__dict__
