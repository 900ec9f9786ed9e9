"""All tensors of a model lie in one block."""

import torch

from serve_app.engines.weights import Weights, weight_bytes

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

    weights = Weights(tensors, CPU, channels_last=True)

    for name, tensor in tensors.items():
        torch.testing.assert_close(weights.tensors[name], tensor, rtol=0, atol=0)
    assert weights.tensors["conv"].is_contiguous(memory_format=torch.channels_last)
    assert weights.nbytes == weight_bytes(tensors)


def test_all_tensors_share_one_storage_and_own_it() -> None:
    """Aligned for vector instructions, and not the source's memory."""
    source = torch.randn(100)
    tensors = {"a": source[:3], "b": source[3:50]}

    weights = Weights(tensors, CPU, channels_last=False)
    source.zero_()

    storages = {tensor.untyped_storage().data_ptr() for tensor in weights.tensors.values()}
    assert len(storages) == 1
    assert source.untyped_storage().data_ptr() not in storages
    assert all(tensor.data_ptr() % 64 == 0 for tensor in weights.tensors.values())
    assert weights.tensors["b"].abs().sum() > 0


def test_tied_tensors_take_their_memory_once() -> None:
    """One object under two names is one place in the block."""
    shared = torch.randn(1000)

    weights = Weights({"a": shared, "b": shared}, CPU, channels_last=False)

    assert weights.nbytes == weight_bytes({"a": shared})
    assert weights.tensors["a"].data_ptr() == weights.tensors["b"].data_ptr()


def test_size_is_known_without_data() -> None:
    """Meta tensors are enough to tell the bytes."""
    assert weight_bytes({"a": torch.empty(16, 16, device="meta")}) == 1024
    assert weight_bytes({}) == 0


def test_closing_drops_the_tensors() -> None:
    """Nothing keeps the block."""
    weights = Weights({"a": torch.zeros(3)}, CPU, channels_last=False)

    weights.close()

    assert not weights.tensors
