"""A graph over fixed places answers as it does over each model's own weights."""

import copy
import gc
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.func import functional_call

from serve_app.engines.graphs import take_tensors
from serve_app.engines.slots import Run, Slot, SlottedRunner
from serve_app.engines.weights import Layout, Weights, lay_out
from tests.support.checkpoints import STRUCTURES, build
from tests.support.tape import TapeCapture

CPU = torch.device("cpu")


class Network:
    """A real small detector: a skeleton as the engine has it, and models that fit it."""

    def __init__(self, *, models: int = 2) -> None:
        skeletons, every = [], []
        for seed in range(models):
            module = build(STRUCTURES["tiny-detect"], seed=seed).fuse(verbose=False)
            every.append(take_tensors(module))
            skeletons.append(module)
        self.skeleton = skeletons[0]
        self.models = [pack(tensors) for tensors in every]
        self.layout = self.models[0].layout
        self.passes = 0
        self._plain = copy.deepcopy(self.skeleton)

    def run(self, tensors: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> object:
        """Run the skeleton, which keeps its grids between passes."""
        self.passes += 1
        return functional_call(self.skeleton, dict(tensors), (pixels,), tie_weights=False)

    def expected(self, weights: Weights, pixels: torch.Tensor) -> object:
        """Run another skeleton on the model's own tensors, with no slot."""
        with torch.inference_mode():
            return functional_call(self._plain, dict(weights.tensors), (pixels,))


def pack(tensors: Mapping[str, torch.Tensor]) -> Weights:
    """Pack tensors as they are."""
    return Weights.pack(layout_of(tensors), tensors)


def layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """Lay tensors out as they are."""
    return lay_out(tensors, lambda name: tensors[name].dtype, channels_last=False)


def pixels_of(batch: int, height: int = 64, width: int = 96, *, seed: int = 0) -> torch.Tensor:
    """Return a batch of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator)


def assert_equal(found: object, expected: object) -> None:
    """Compare raw outputs, however they are nested; batches of other sizes round differently."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def network() -> Network:
    """Two models of one graph."""
    return Network()


@pytest.fixture
def capture() -> TapeCapture:
    """A recorder that counts."""
    return TapeCapture()


@pytest.fixture
def slot(network: Network) -> Slot:
    """A place for one of them."""
    return Slot(network.layout, CPU)


def test_slot_holds_one_model_at_fixed_addresses(network: Network, slot: Slot) -> None:
    """A swap changes the bytes and nothing else; none is made for the model that is there."""
    first, second = network.models
    addresses = {name: tensor.data_ptr() for name, tensor in slot.tensors.items()}

    assert [slot.hold(first), slot.hold(first), slot.hold(second)] == [True, False, True]

    assert {name: tensor.data_ptr() for name, tensor in slot.tensors.items()} == addresses
    for name, tensor in second.tensors.items():
        torch.testing.assert_close(slot.tensors[name], tensor, rtol=0, atol=0)
    assert slot.nbytes == network.layout.nbytes


def test_slot_knows_models_apart_that_come_and_go(network: Network, slot: Slot) -> None:
    """A later model at the same address is another model, and the slot keeps none alive."""
    for fill in range(5):
        weights = Weights(network.layout, network.models[0].block.clone().fill_(fill))
        assert slot.hold(weights)
        assert set(slot._place.block.tolist()) == {fill}
        gone = weakref.ref(weights)
        del weights
        gc.collect()
        assert gone() is None


def test_slot_refuses_what_does_not_fit(network: Network, slot: Slot) -> None:
    """Weights of another graph, and closed ones; what was there stays."""
    other = pack({"a": torch.zeros(8)})
    closed = Weights(network.layout, network.models[0].block.clone())
    closed.close()
    slot.hold(network.models[0])

    with pytest.raises(ValueError, match="not of this graph"):
        slot.hold(other)
    with pytest.raises(ValueError, match="closed"):
        slot.hold(closed)

    assert not slot.hold(network.models[0])


def test_slot_after_a_failed_copy_holds_nobody(
    network: Network, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a model's bytes are no model: the next one is copied whatever it is."""
    slot.hold(network.models[0])
    broken = Weights(network.layout, torch.empty(network.layout.nbytes, dtype=torch.uint8))
    broken.block = broken.block.to("meta")

    with pytest.raises(NotImplementedError):
        slot.hold(broken)

    assert slot.hold(network.models[0])


@pytest.mark.parametrize("recorded", [False, True])
def test_each_model_answers_for_itself(
    recorded: bool, network: Network, capture: TapeCapture
) -> None:
    """In turn over one slot, in batches that fill their bucket and that do not."""
    runner = SlottedRunner(
        network.run, network.layout, CPU, capture=capture if recorded else None, batches=(1, 2, 4)
    )
    for turn in range(4):
        for batch in (1, 3, 4, 2):
            for weights in network.models:
                pixels = pixels_of(batch, seed=turn * 10 + batch)
                assert_equal(runner(weights, pixels), network.expected(weights, pixels))

    # Buckets 1, 2 and 4; all but the first use of each is replayed.
    assert capture.captures == (3 if recorded else 0)
    assert capture.replays == (4 * 4 * 2 - 3 if recorded else 0)


def test_shapes_take_turns_although_the_head_keeps_one_grid(
    network: Network, capture: TapeCapture
) -> None:
    """Each recording keeps the grid that it reads; the head's own is always another shape's."""
    runner = SlottedRunner(network.run, network.layout, CPU, capture=capture, batches=(1, 2))
    sizes = [(32, 96), (96, 32), (64, 64)]
    for turn in range(3):
        for height, width in sizes:
            for batch in (1, 2):
                weights = network.models[turn % 2]
                pixels = pixels_of(batch, height, width, seed=turn)
                assert_equal(runner(weights, pixels), network.expected(weights, pixels))
                gc.collect()

    assert capture.captures == 6
    # Passes in between that are not recorded change the head's grid, not the recordings'.
    assert_equal(
        runner(network.models[0], pixels_of(1, 128, 128)),
        network.expected(network.models[0], pixels_of(1, 128, 128)),
    )
    pixels = pixels_of(1, *sizes[0])
    assert_equal(runner(network.models[1], pixels), network.expected(network.models[1], pixels))


def test_a_recording_keeps_grids_but_not_activations(
    network: Network, capture: TapeCapture
) -> None:
    """Kept are the input, the slot's block and what the head held, once each."""
    runner = SlottedRunner(network.run, network.layout, CPU, capture=capture)
    for _ in range(2):
        runner(network.models[0], pixels_of(1))

    (recording,) = runner._recordings.values()
    kept = {tensor.untyped_storage().data_ptr() for tensor in recording.kept}
    head = network.skeleton.model[-1]
    needed = (recording.pixels, runner._slot._place.block, head.anchors, head.strides)
    assert {tensor.untyped_storage().data_ptr() for tensor in needed} <= kept
    assert len(recording.kept) == len(kept) <= len(needed) + 1  # and what some head has besides
    assert runner.nbytes == network.layout.nbytes + pixels_of(1).nbytes


def test_answers_are_the_callers_own(network: Network, capture: TapeCapture) -> None:
    """The next replay overwrites the recording's outputs, not what was handed out."""
    runner = SlottedRunner(network.run, network.layout, CPU, capture=capture)
    pixels = pixels_of(2)
    runner(network.models[0], pixels)
    first = runner(network.models[0], pixels)
    before = copy.deepcopy(first)

    runner(network.models[1], pixels_of(2, seed=9))

    assert_equal(first, before)


def test_replays_run_no_python_of_the_model(network: Network, capture: TapeCapture) -> None:
    """Once recorded, a shape takes no further passes, whichever model it is for."""
    runner = SlottedRunner(network.run, network.layout, CPU, capture=capture)
    runner(network.models[0], pixels_of(1))
    runner(network.models[0], pixels_of(1))
    passes = network.passes

    for weights in network.models * 3:
        runner(weights, pixels_of(1))

    assert network.passes == passes


def scale() -> tuple[Run, Weights]:
    """Return the smallest of graphs and its model."""
    weights = pack({"factor": torch.tensor([2.0])})
    return lambda tensors, pixels: {"out": (pixels * tensors["factor"], None)}, weights


def test_shape_is_recorded_on_its_second_use(capture: TapeCapture) -> None:
    """Rare shapes are never worth it; batches larger than any bucket neither."""
    run, weights = scale()
    runner = SlottedRunner(run, weights.layout, CPU, capture=capture, batches=(1, 2))

    for width in range(8, 40):
        runner(weights, torch.ones(1, 3, 8, width))
    for _ in range(3):
        runner(weights, torch.ones(3, 3, 8, 8))
    assert capture.captures == 0

    answer = runner(weights, torch.ones(1, 3, 8, 8))

    assert capture.captures == 1
    assert repr(runner).endswith("1 shapes recorded>")
    assert_equal(answer, {"out": (torch.full((1, 3, 8, 8), 2.0), None)})


def test_only_so_many_shapes_are_recorded(capture: TapeCapture) -> None:
    """Busy recordings keep their places; one that nobody used for long gives its place up."""
    run, weights = scale()
    runner = SlottedRunner(run, weights.layout, CPU, capture=capture, max_captures=2)

    def use(width: int, times: int) -> None:
        for _ in range(times):
            pixels = torch.ones(1, 3, 8, width)
            assert_equal(runner(weights, pixels)["out"][0], pixels * 2)

    for _ in range(5):
        for width in (1, 2, 3):
            use(width, 1)
    assert capture.captures == 2
    assert len(capture.open) == 2

    use(1, 300)
    use(3, 2)

    assert capture.captures == 3
    gc.collect()
    assert len(capture.open) == 2  # the memory of the one that went is free
    assert [shape[0][3] for shape in runner._recordings] == [1, 3]


def test_failure_to_record_ends_recording(caplog: pytest.LogCaptureFixture) -> None:
    """The request is answered, and so are all later ones, without another try or another line."""
    run, weights = scale()
    tries = []

    def refuse(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        tries.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    runner = SlottedRunner(run, weights.layout, CPU, capture=refuse)
    with caplog.at_level(logging.WARNING):
        for width in (8, 8, 8, 9, 9, 9):
            pixels = torch.ones(1, 3, 8, width)
            assert_equal(runner(weights, pixels)["out"][0], pixels * 2)

    assert len(tries) == 1
    assert [record.message for record in caplog.records] == [
        "passes are not recorded, so launched one by one: "
        "operation not permitted when stream is capturing"
    ]


def test_shape_that_fails_is_never_recorded(capture: TapeCapture) -> None:
    """A size that a model cannot take must not end recording for the others."""
    _, weights = scale()

    def run(tensors: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> object:
        if pixels.shape[3] % 2:
            raise RuntimeError("sizes do not match")
        return pixels * tensors["factor"]

    runner = SlottedRunner(run, weights.layout, CPU, capture=capture)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="sizes do not match"):
            runner(weights, torch.ones(1, 3, 8, 7))
        runner(weights, torch.ones(1, 3, 8, 8))

    assert (capture.captures, capture.replays) == (1, 2)


def test_padding_never_reaches_an_answer(capture: TapeCapture) -> None:
    """Rows of an earlier, fuller batch are computed along and cut off, in every output."""
    _, weights = scale()

    def run(tensors: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> object:
        scaled = pixels * tensors["factor"]
        return [scaled, {"each": scaled.sum((1, 2, 3)), "grid": torch.ones(7) * tensors["factor"]}]

    runner = SlottedRunner(run, weights.layout, CPU, capture=capture, batches=(4,))
    full = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2).contiguous()
    for _ in range(2):
        runner(weights, full)

    scaled, other = runner(weights, full[1:3].contiguous())

    assert_equal(scaled, full[1:3] * 2)
    assert_equal(other["each"], torch.tensor([24.0, 48.0]))
    assert other["grid"].shape == (7,)


def test_memory_order_of_the_pixels_is_kept(capture: TapeCapture) -> None:
    """Channels-last pictures choose channels-last kernels when recorded, too."""
    orders = []
    _, weights = scale()

    def run(tensors: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> object:
        orders.append(pixels.is_contiguous(memory_format=torch.channels_last))
        return pixels * tensors["factor"]

    runner = SlottedRunner(run, weights.layout, CPU, capture=capture)
    for _ in range(3):
        runner(weights, torch.ones(1, 3, 8, 8).contiguous(memory_format=torch.channels_last))

    assert capture.replays == 2
    assert all(orders)
