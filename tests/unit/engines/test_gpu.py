"""The same engine on a GPU: skipped without one. It needs neither Ray nor HTTP."""

import threading
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.engines.arena import HostArena
from serve_app.engines.devices import device_total_bytes, resolve_device
from serve_app.engines.graphs import Graph, move_plain_tensors, take_tensors
from serve_app.engines.slots import CudaCapture, SlottedRunner
from serve_app.engines.torch_engine import TorchEngine
from serve_app.engines.weights import Layout, Weights, lay_out
from serve_app.types import ImageArray, PredictParams
from tests.support.checkpoints import STRUCTURES, CheckpointFolder, build
from tests.support.models import answer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU = torch.device("cuda:0")
PARAMS = PredictParams(conf=0.3, max_det=30)
SIZES = [(64, 96), (96, 64), (64, 64)]


class Fleet:
    """Three models of one graph, packed on the CPU, and the graph on the GPU."""

    def __init__(self, dtype: torch.dtype, architecture: str = "yolo11n") -> None:
        structure = STRUCTURES.get(architecture, architecture)
        modules = [build(structure, seed=seed).float().fuse(verbose=False) for seed in range(3)]
        every = [take_tensors(module) for module in modules]
        move_plain_tensors(modules[0], GPU)
        self.graph = Graph(modules[0], architecture, dtype)
        self.layout: Layout = lay_out(
            every[0], self.graph.dtype_of, channels_last=dtype != torch.float32
        )
        self.models = [Weights.pack(self.layout, tensors) for tensors in every]
        self.allocating = threading.Lock()
        self.capture = CudaCapture(GPU, self.allocating)

    def runner(self, *, capture: bool) -> SlottedRunner:
        """Return what runs the graph over a slot on the GPU."""
        how = self.capture if capture else None
        return SlottedRunner(self.graph.run, self.layout, GPU, capture=how)

    def parked(self) -> HostArena:
        """Return a pinned arena that holds all three, by their numbers."""
        arena = HostArena(3 * (self.layout.nbytes + 256), pin=True)
        for number, weights in enumerate(self.models):
            assert arena.park(str(number), weights.block)
        return arena


def pixels_of(batch: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Return a batch of noise on the GPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, *size, generator=generator).to(GPU)


def predictions(raw: object) -> torch.Tensor:
    """Return what postprocessing reads, as fp32 on the CPU."""
    output = raw[0] if isinstance(raw, tuple) else raw
    assert isinstance(output, torch.Tensor)
    return output.float().cpu()


def _without_tf32() -> AbstractContextManager[None]:
    flags: Any = torch.backends.cudnn.flags
    context: AbstractContextManager[None] = flags(enabled=True, allow_tf32=False)
    return context


@pytest.fixture(scope="module")
def half() -> Fleet:
    """Models in fp16, channels-last."""
    return Fleet(torch.float16)


def test_auto_takes_the_gpu() -> None:
    """Where there is a GPU, models run on it, and its memory is the device's."""
    device = resolve_device("auto")
    assert device == "cuda:0"
    assert device_total_bytes(device) == torch.cuda.get_device_properties(0).total_memory


@pytest.mark.parametrize("task", ["", "-seg", "-pose", "-obb", "-cls"])
def test_answers_are_those_of_the_cpu(
    task: str, checkpoints: CheckpointFolder, bus: ImageArray
) -> None:
    """Same classes in the same order; boxes and confidences within rounding (no TF32)."""
    path = checkpoints(f"yolo11n{task}", imgsz=224)
    results = []
    for device in ("cpu", "cuda:0"):
        model = TorchEngine(device).open(path)
        model.warm_up()
        results.append(answer(model, bus, PARAMS))
        model.close()
    on_cpu, on_gpu = results
    np.testing.assert_array_equal(on_cpu.class_id, on_gpu.class_id)
    np.testing.assert_allclose(on_cpu.confidence, on_gpu.confidence, atol=1e-3)
    if on_cpu.boxes is not None and on_gpu.boxes is not None:
        np.testing.assert_allclose(on_cpu.boxes, on_gpu.boxes, atol=0.5)


def test_eviction_returns_the_memory(checkpoints: CheckpointFolder, bus: ImageArray) -> None:
    """After 200 loads and evictions the allocator holds what it held after the first few."""
    engine = TorchEngine("cuda:0")
    paths = [checkpoints("tiny-detect", seed=seed) for seed in (1, 2)]
    reserved = []
    for cycle in range(200):
        model = engine.open(paths[cycle % 2])
        model.warm_up()
        assert model.footprint.own_bytes > 0
        answer(model, bus, PARAMS)
        model.close()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= max(reserved[:10])


def test_arena_is_pinned(half: Fleet) -> None:
    """What is parked can be copied while the stream goes on, and comes over unchanged."""
    arena = half.parked()

    with arena.borrow("1") as block:
        assert block is not None
        assert block.is_pinned()
        assert block.data_ptr() % 256 == 0
        moved = block.to(GPU, non_blocking=True)

    assert torch.equal(moved.cpu(), half.models[1].block)
    assert arena.park("from the device", moved)  # evicts another
    with arena.borrow("from the device") as block:
        assert block is not None
        assert torch.equal(block, half.models[1].block)


def test_lent_bytes_stay_until_their_copy_has_ended(half: Fleet) -> None:
    """A copy that is only queued when the loan ends is waited for."""
    arena = half.parked()
    busy = torch.rand(4096, 4096, device=GPU)
    with arena.borrow("0") as block:
        assert block is not None
        for _ in range(50):
            busy = busy @ busy  # the copy stands behind these
        moved = block.to(GPU, non_blocking=True)
    arena.drop("0")
    assert arena.park("other", torch.zeros_like(half.models[0].block))

    assert torch.equal(moved.cpu(), half.models[0].block)


def test_models_swapped_in_answer_as_in_fp32_on_the_cpu() -> None:
    """Each of three, in turn, out of the arena and through one slot."""
    exact = Fleet(torch.float32)
    arena, runner = exact.parked(), exact.runner(capture=True)
    plain = Fleet(torch.float32)
    move_plain_tensors(plain.graph.skeleton, torch.device("cpu"))

    for turn in range(9):
        number = turn % 3
        pixels = pixels_of(1, (96, 96), seed=turn)
        with arena.borrow(str(number)) as block, _without_tf32():
            assert block is not None
            found = predictions(runner(Weights(exact.layout, block), pixels))
        with torch.inference_mode():
            expected = plain.graph.run(plain.models[number].tensors, pixels.cpu())
        torch.testing.assert_close(found, predictions(expected), rtol=1e-3, atol=1e-2)


def test_half_precision_channels_last_stays_close(half: Fleet) -> None:
    """Boxes within a pixel and confidences within two hundredths of fp32's, for each model."""
    exact = Fleet(torch.float32)
    runner = half.runner(capture=False)
    convolution = half.models[0].tensors["model.1.conv.weight"]
    assert convolution.dtype == torch.float16
    assert convolution.is_contiguous(memory_format=torch.channels_last)

    for number in range(3):
        pixels = pixels_of(2, (160, 160), seed=number)
        found = predictions(runner(half.models[number], pixels))
        with torch.inference_mode():
            on_gpu = exact.models[number].to(GPU)
            expected = predictions(exact.graph.run(on_gpu.tensors, pixels))
        assert (found[:, :4] - expected[:, :4]).abs().max() < 1
        assert (found[:, 4:] - expected[:, 4:]).abs().max() < 0.02


@pytest.mark.parametrize("architecture", ["yolo11n", "yolo11n-seg", "yolo26n", "tiny-end2end"])
def test_recorded_passes_answer_as_launched_ones(architecture: str) -> None:
    """Whatever shapes, batches and models take turns: heads keep the grid of one size only."""
    fleet = Fleet(torch.float16, architecture)
    models = [weights.to(GPU) for weights in fleet.models]
    recorded, launched = fleet.runner(capture=True), fleet.runner(capture=False)

    # Padding another batch would choose other kernels, and the best of an end-to-end head be
    # others that are as good: these fill their buckets.
    for turn in range(6):
        for size in SIZES:
            for batch in (1, 2):
                pixels = pixels_of(batch, size, seed=turn)
                weights = models[(turn + batch) % 3]
                found = recorded(weights, pixels)
                expected = launched(weights, pixels)
                torch.testing.assert_close(found, expected, rtol=1e-2, atol=0.5)

    assert len(recorded._recordings) == len(SIZES) * 2
    assert recorded._capture is not None, "recording was given up"


def test_swaps_take_no_memory(half: Fleet) -> None:
    """After 500 swaps out of the arena the device holds, to the byte, what it held before."""
    arena, runner = half.parked(), half.runner(capture=True)
    used = []
    for turn in range(505):
        with arena.borrow(str(turn % 3)) as block:
            assert block is not None
            runner(Weights(half.layout, block), pixels_of(1, SIZES[turn % 3]))
        if turn >= 4 * len(SIZES):
            used.append((torch.cuda.memory_allocated(GPU), torch.cuda.memory_reserved(GPU)))

    assert used[0] == used[-1]


def test_others_may_load_while_a_pass_is_recorded(half: Fleet) -> None:
    """A loader thread takes memory between recordings and copies during them."""
    runner, stop, failed = half.runner(capture=True), threading.Event(), []

    def load() -> None:
        stream = torch.cuda.Stream(GPU)  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.stream(stream):
                while not stop.is_set():
                    with half.allocating:
                        block = torch.empty(half.layout.nbytes, dtype=torch.uint8, device=GPU)
                    block.copy_(half.models[0].block)
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        weights = half.models[1].to(GPU)
        for size in SIZES * 3:
            runner(weights, pixels_of(1, size))
    finally:
        stop.set()
        thread.join()

    assert not failed
    assert runner._capture is not None, "recording was given up"
