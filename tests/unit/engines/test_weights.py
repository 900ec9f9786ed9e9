"""All tensors of a model lie in one block."""

import torch

from serve_app.engines.weights import Weights, lay_out

CPU = torch.device("cpu")


def test_tensors_keep_values_shapes_and_types() -> None:
    """Whatever the memory layout."""
    tensors = {
        "conv": torch.randn(4, 3, 3, 3),
        "pointwise": torch.randn(4, 3, 1, 1),
        "bias": torch.randn(5),
        "count": torch.tensor(7),
        "empty": torch.empty(0),
    }

    weights = Weights.pack(tensors, channels_last=True)

    for name, tensor in tensors.items():
        torch.testing.assert_close(weights.tensors[name], tensor, rtol=0, atol=0)
    assert weights.tensors["conv"].is_contiguous(memory_format=torch.channels_last)
    assert weights.layout == lay_out(tensors, channels_last=True)


def test_all_tensors_share_one_storage_and_own_it() -> None:
    """Aligned for vector instructions, and not the source's memory."""
    source = torch.randn(100)
    tensors = {"a": source[:3], "b": source[3:50]}

    weights = Weights.pack(tensors, channels_last=False)
    source.zero_()

    storages = {tensor.untyped_storage().data_ptr() for tensor in weights.tensors.values()}
    assert len(storages) == 1
    assert source.untyped_storage().data_ptr() not in storages
    assert all(tensor.data_ptr() % 64 == 0 for tensor in weights.tensors.values())
    assert weights.tensors["b"].abs().sum() > 0


def test_tied_tensors_take_their_memory_once() -> None:
    """One object under two names is one place in the block."""
    shared = torch.randn(1000)

    weights = Weights.pack({"a": shared, "b": shared}, channels_last=False)

    assert weights.layout.nbytes == lay_out({"a": shared}, channels_last=False).nbytes
    assert weights.tensors["a"].data_ptr() == weights.tensors["b"].data_ptr()


def test_size_is_known_without_data() -> None:
    """Meta tensors are enough to tell the bytes."""
    assert lay_out({"a": torch.empty(16, 16, device="meta")}, channels_last=True).nbytes == 1024
    assert lay_out({}, channels_last=True).nbytes == 0


def test_weights_stay_where_they_are() -> None:
    """Moving to the device they are on copies nothing."""
    weights = Weights.pack({"a": torch.ones(3)}, channels_last=False)

    assert weights.to(CPU) is weights
    moved = weights.to(torch.device("meta"))
    assert moved.tensors["a"].is_meta
    assert moved.layout is weights.layout


def test_closing_drops_the_tensors() -> None:
    """Nothing keeps the block."""
    weights = Weights.pack({"a": torch.zeros(3)}, channels_last=False)

    weights.close()

    assert not weights.tensors
