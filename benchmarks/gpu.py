"""`python -m benchmarks.gpu`: what swaps and recorded passes take on a GPU, as tables.

It needs no Ray and no server: it measures the parts of the engine that only a GPU has. Without one
it says so; `--device cpu` runs a small version there, which shows that the program itself works.
Networks of the sizes n to x have random weights; parity is measured with the trained demo models.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import serve_app.engines  # noqa: F401 - settles the environment before Ultralytics is imported

import torch  # isort: skip
import ultralytics  # isort: skip
from torch import nn  # isort: skip
from ultralytics.models import YOLO  # isort: skip

from serve_app.engines.arena import ALIGNMENT, HostArena
from serve_app.engines.base import Description
from serve_app.engines.checkpoint import read_model
from serve_app.engines.graphs import Graph, move_plain_tensors, take_tensors
from serve_app.engines.precision import resolve_precision
from serve_app.engines.slots import Capture, CudaCapture, Slot, SlottedRunner
from serve_app.engines.weights import Weights, lay_out

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
_PROBE_BYTES = 256 * 2**20
_CONFIDENT = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure.

    sizes: of the networks
    imgsz: side of the pictures in pixels
    repeats: of each swap that is timed
    seconds: for which each rate is measured
    swaps: after which memory is compared
    models: demo models to compare with fp32
    """

    sizes: str
    imgsz: int
    repeats: int
    seconds: float
    swaps: int
    models: int


FULL = Plan(sizes="nsmlx", imgsz=640, repeats=50, seconds=1.0, swaps=500, models=10)
SMALL = Plan(sizes="n", imgsz=64, repeats=3, seconds=0.1, swaps=5, models=1)


class Network:
    """A graph on a device, and two models of it parked in an arena of their own."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        tensors = take_tensors(module)
        move_plain_tensors(module, device)
        self.device = device
        self.graph = Graph(module, "benchmark", dtype)
        on_gpu = device.type == "cuda"
        channels_last = self.graph.dtype != torch.float32
        self.layout = lay_out(tensors, self.graph.dtype_of, channels_last=channels_last)
        weights = Weights.pack(self.layout, tensors)
        self.arena = HostArena(2 * (self.layout.nbytes + ALIGNMENT), pin=on_gpu)
        self.keys = ("first", "second")
        for key in self.keys:
            if not self.arena.park(key, weights.block):
                raise RuntimeError(f"{self.arena!r} has no room for {self.layout.nbytes} bytes")
        self.on_device = [Weights(self.layout, weights.block.to(device)) for _ in self.keys]
        self.capture: Capture | None = CudaCapture(device, threading.Lock()) if on_gpu else None

    def runner(self, *, capture: bool) -> SlottedRunner:
        """Return what runs this graph over a slot."""
        how = self.capture if capture else None
        return SlottedRunner(self.graph.run, self.layout, self.device, capture=how)

    def pixels(self, batch: int, imgsz: int) -> torch.Tensor:
        """Return a batch of noise, in the numbers of the graph."""
        return torch.rand(batch, 3, imgsz, imgsz, device=self.device).to(self.graph.dtype)

    @contextmanager
    def parked(self) -> Iterator[list[Weights]]:
        """Lend both models as they lie in the arena."""
        with self.arena.borrow("first") as first, self.arena.borrow("second") as second:
            yield [Weights(self.layout, one) for one in (first, second) if one is not None]

    def swap(self, slot: Slot, turn: int) -> None:
        """Put the other model into the slot, out of the arena, and wait until it is there."""
        with self.arena.borrow(self.keys[turn % 2]) as block:
            if block is None:
                raise RuntimeError("a parked model is gone")
            slot.hold(Weights(self.layout, block))
            _synchronize(self.device)


def random_network(size: str, device: torch.device) -> Network:
    """Return yolo11 of a size, with random weights."""
    module: Any = YOLO(f"yolo11{size}.yaml").model
    fused = module.float().fuse(verbose=False).eval()
    return Network(fused, device, resolve_precision("auto", device))


def swap_row(size: str, network: Network, bandwidth: float, repeats: int) -> list[str]:
    """Time swaps against the time in which the bytes alone could cross over.

    copy: of a block that lies ready; swap: with all that surrounds it; in device: of a block that
    is on the device already
    """
    slot = Slot(network.layout, network.device)

    def median_s(models: Sequence[Weights]) -> float:
        return _median_s(network.device, lambda turn: slot.hold(models[turn % 2]), repeats)

    floor = network.layout.nbytes / bandwidth
    with network.parked() as parked:
        copy = median_s(parked)
    swap = _median_s(network.device, lambda turn: network.swap(slot, turn), repeats)
    times = [f"{one * 1e3:.3f}" for one in (floor, copy, swap, median_s(network.on_device))]
    return [size, f"{network.layout.nbytes / 1e6:.1f}", *times, f"{copy / floor:.2f}"]


def measure_bandwidth(device: torch.device) -> float:
    """Return the bytes per second of one large copy from host memory, pinned for a GPU."""
    source = torch.ones(_PROBE_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.zeros(_PROBE_BYTES, dtype=torch.uint8, device=device)
    return _PROBE_BYTES / _median_s(device, lambda _: target.copy_(source), 5)


def rate_row(size: str, network: Network, batch: int, plan: Plan) -> list[str]:
    """Count pictures per second: launched and recorded, for one model and for two in turn."""
    pixels = network.pixels(batch, plan.imgsz)
    ways = [(False, False), (True, False), (True, True)] if network.capture else [(False, False)]
    rates = [
        batch * _per_second(network, network.runner(capture=capture), pixels, plan.seconds, swaps)
        for capture, swaps in ways
    ]
    return [size, str(batch), *(f"{rate:.0f}" for rate in rates), *["-"] * (3 - len(rates))]


def _per_second(
    network: Network, runner: SlottedRunner, pixels: torch.Tensor, seconds: float, swaps: bool
) -> float:
    """Return passes per second; with `swaps`, another model runs in each."""
    for _ in range(3):  # recorded on the second use
        runner(network.on_device[0], pixels)
    _synchronize(network.device)
    started = time.perf_counter()
    calls = 0
    while time.perf_counter() - started < seconds:
        runner(network.on_device[calls % 2 if swaps else 0], pixels)
        calls += 1
        if calls % 8 == 0:  # the queue of a stream is long, but not endless
            _synchronize(network.device)
    _synchronize(network.device)
    return calls / (time.perf_counter() - started)


def memory_row(network: Network, plan: Plan) -> list[str]:
    """Swap and run often; return the device's bytes before and after."""
    runner = network.runner(capture=True)
    pixels = network.pixels(1, plan.imgsz)

    def swap_and_run(turn: int) -> None:
        with network.arena.borrow(network.keys[turn % 2]) as block:
            if block is None:
                raise RuntimeError("a parked model is gone")
            runner(Weights(network.layout, block), pixels)
            _synchronize(network.device)

    for turn in range(5):
        swap_and_run(turn)
    before = _used_bytes(network.device)
    for turn in range(plan.swaps):
        swap_and_run(turn)
    after = _used_bytes(network.device)
    return [str(plan.swaps), *(f"{n / 1e6:.2f}" for n in (before, after)), str(after - before)]


@torch.inference_mode()
def parity_rows(device: torch.device, models: int) -> list[list[str]]:
    """Compare the demo models' answers on their pictures with those of fp32 on the CPU."""
    rows = []
    for path in sorted(ROOT.glob("models/*/*/model.pt"))[:models]:
        name = path.parts[-3]
        exact, described = _open(path, CPU, torch.float32)
        fast, _ = _open(path, device, resolve_precision("auto", device))
        runner = fast.runner(capture=True)
        shifts = []
        for picture in sorted(ROOT.glob(f"demo/samples/{name.split('-', maxsplit=1)[0]}-*.jpg")):
            pixels = _letterbox(picture, described.info.imgsz)
            expected = exact.graph.run(exact.on_device[0].tensors, pixels)
            moved = pixels.to(device, fast.graph.dtype)
            found = [runner(fast.on_device[0], moved) for _ in range(3)][-1]  # a recorded one
            shifts.append(_shift(_boxes(expected), _boxes(found).cpu()))
        if shifts:
            count, boxes, confidences = (list(column) for column in zip(*shifts, strict=True))
            rows.append([name, str(sum(count)), f"{max(boxes):.3f}", f"{max(confidences):.4f}"])
    return rows


def _open(path: Path, device: torch.device, dtype: torch.dtype) -> tuple[Network, Description]:
    checkpoint = read_model(path)
    return Network(checkpoint.module, device, dtype), checkpoint.description


def _letterbox(picture: Path, imgsz: tuple[int, int]) -> torch.Tensor:
    """Return a picture as its model's input (1, 3, height, width), RGB in 0..1."""
    image = cv2.imread(str(picture))
    if image is None:
        raise FileNotFoundError(f"{picture} is no picture")
    scale = min(side / size for side, size in zip(imgsz, image.shape[:2], strict=True))
    small = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR))
    canvas = np.full((*imgsz, 3), 114, np.uint8)
    height, width = min(small.shape[0], imgsz[0]), min(small.shape[1], imgsz[1])
    canvas[:height, :width] = small[:height, :width]
    rgb = np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(rgb)[None].float() / 255


def _boxes(raw: object) -> torch.Tensor:
    """Return (4 + classes, places): the boxes as centre and size in pixels, then confidences."""
    output = raw[0] if isinstance(raw, tuple) else raw
    assert isinstance(output, torch.Tensor)  # noqa: S101 - the demo models only detect
    return output[0]


def _shift(expected: torch.Tensor, found: torch.Tensor) -> tuple[int, float, float]:
    """Return the boxes that fp32 is sure of, and how far they and their confidences moved."""
    sure = expected[4:].max(dim=0).values > _CONFIDENT
    apart = (expected[:, sure] - found[:, sure].float()).abs()
    if not apart.numel():
        return 0, 0.0, 0.0
    return int(sure.sum()), float(apart[:4].max()), float(apart[4:].max())


def _median_s(device: torch.device, step: Callable[[int], object], repeats: int) -> float:
    """Return the median seconds of a step, given its number; each is waited for."""
    seconds = []
    for turn in range(repeats + 2):
        _synchronize(device)
        started = time.perf_counter()
        step(turn)
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _used_bytes(device: torch.device) -> int:
    """Return what the allocator holds of the device; on the CPU, this process's resident set."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(columns)} |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def _heading(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    numbers = str(resolve_precision("auto", device)).removeprefix("torch.")
    versions = f"torch {torch.__version__}, ultralytics {ultralytics.__version__}"
    return f"{name}, {numbers}, {versions}, {datetime.now(UTC):%Y-%m-%d}"


def report(device: torch.device, plan: Plan) -> None:
    """Measure everything and print it as Markdown."""
    print(_heading(device))
    networks = [(size, random_network(size, device)) for size in plan.sizes]
    bandwidth = measure_bandwidth(device)
    _print_table(
        f"Swaps, at {bandwidth / 1e9:.1f} GB/s from the host",
        ["yolo11", "MB", "floor ms", "copy ms", "swap ms", "in device ms", "copy / floor"],
        (swap_row(size, network, bandwidth, plan.repeats) for size, network in networks),
    )
    _print_table(
        f"Pictures per second at {plan.imgsz} px",
        ["yolo11", "batch", "launched", "recorded", "recorded, two models in turn"],
        (rate_row(size, one, batch, plan) for size, one in networks for batch in (1, 8)),
    )
    _print_table(
        "Device memory",
        ["swaps", "MB before", "MB after", "bytes grown"],
        [memory_row(networks[0][1], plan)],
    )
    _print_table(
        "Against fp32 on the CPU",
        ["model", "boxes", "largest box shift px", "largest confidence shift"],
        parity_rows(device, plan.models),
    )


def main(arguments: Sequence[str]) -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda:0", help="cuda:n, or cpu for a small version")
    device = torch.device(parser.parse_args(arguments).device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured; --device cpu tries the program out")
        return 2
    if device.type == "cpu":
        torch.set_num_threads(1)  # a trial must not take the machine
    report(device, FULL if device.type == "cuda" else SMALL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
