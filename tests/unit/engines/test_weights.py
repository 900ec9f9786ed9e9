"""All tensors of a model lie in one block."""

from collections.abc import Mapping

import pytest
import torch

from serve_app.engines.weights import Layout, Weights, allocate, lay_out

CPU = torch.device("cpu")


def lay(tensors: Mapping[str, torch.Tensor], *, channels_last: bool = True) -> Layout:
    """Lay tensors out in the numbers that they are in."""
    return lay_out(tensors, lambda name: tensors[name].dtype, channels_last=channels_last)


def pack(tensors: Mapping[str, torch.Tensor], *, channels_last: bool = True) -> Weights:
    """Pack tensors in the numbers that they are in."""
    return Weights.pack(lay(tensors, channels_last=channels_last), tensors)


def test_tensors_keep_values_shapes_and_types() -> None:
    """Whatever the memory layout."""
    tensors = {
        "conv": torch.randn(4, 3, 3, 3),
        "pointwise": torch.randn(4, 3, 1, 1),
        "bias": torch.randn(5),
        "count": torch.tensor(7),
        "empty": torch.empty(0),
    }

    weights = pack(tensors)

    for name, tensor in tensors.items():
        torch.testing.assert_close(weights.tensors[name], tensor, rtol=0, atol=0)
    assert weights.tensors["conv"].is_contiguous(memory_format=torch.channels_last)
    assert weights.layout == lay(tensors)


def test_all_tensors_share_one_storage_and_own_it() -> None:
    """Without gaps, and not the source's memory."""
    source = torch.randn(100)
    tensors = {"a": source[:3], "b": source[3:50]}

    weights = pack(tensors, channels_last=False)
    source.zero_()

    storages = {tensor.untyped_storage().data_ptr() for tensor in weights.tensors.values()}
    assert len(storages) == 1
    assert source.untyped_storage().data_ptr() not in storages
    assert weights.layout.nbytes == (3 + 47) * 4
    assert weights.tensors["b"].abs().sum() > 0


def test_the_widest_numbers_come_first_then_names() -> None:
    """As safetensors writes them, so that a file's tensors are a block as they lie."""
    tensors = {"c": torch.zeros(3).bfloat16(), "b": torch.zeros(1), "a": torch.zeros(5).bfloat16()}

    places = lay(tensors).places

    assert [places[name].offset for name in ("b", "a", "c")] == [0, 4, 14]


def test_numbers_are_those_asked_for() -> None:
    """Floats only: what counts stays whole."""
    tensors = {"a": torch.rand(4, 3, 3, 3), "dfl": torch.arange(16.0), "count": torch.tensor(3)}
    layout = lay_out(
        tensors,
        lambda name: torch.float32 if name == "dfl" else torch.bfloat16,
        channels_last=True,
    )

    weights = Weights.pack(layout, tensors)

    assert weights.tensors["a"].dtype == torch.bfloat16
    torch.testing.assert_close(weights.tensors["a"], tensors["a"].bfloat16(), rtol=0, atol=0)
    assert weights.tensors["dfl"].dtype == torch.float32
    assert weights.tensors["count"].item() == 3


def test_tied_tensors_take_their_memory_once() -> None:
    """One object under two names is one place in the block."""
    shared = torch.randn(1000)

    weights = pack({"a": shared, "b": shared}, channels_last=False)

    assert weights.layout.nbytes == lay({"a": shared}, channels_last=False).nbytes
    assert weights.tensors["a"].data_ptr() == weights.tensors["b"].data_ptr()


def test_size_is_known_without_data() -> None:
    """Meta tensors are enough to tell the bytes."""
    assert lay({"a": torch.empty(16, 16, device="meta")}).nbytes == 1024
    assert lay({}).nbytes == 0


def test_weights_stay_where_they_are() -> None:
    """Moving to the device they are on copies nothing."""
    weights = pack({"a": torch.ones(3)}, channels_last=False)

    assert weights.to(CPU) is weights
    moved = weights.to(torch.device("meta"))
    assert moved.tensors["a"].is_meta
    assert moved.layout is weights.layout


@pytest.mark.parametrize("nbytes", [2**60, 2**70])
def test_lack_of_memory_is_told_as_such(nbytes: int) -> None:
    """The kernel's error for it is one of files, which would put the blame on the model."""
    with pytest.raises(MemoryError):
        allocate(nbytes)


def test_closing_drops_the_tensors() -> None:
    """Nothing keeps the block."""
    weights = pack({"a": torch.zeros(3)}, channels_last=False)

    weights.close()

    assert not weights.tensors
