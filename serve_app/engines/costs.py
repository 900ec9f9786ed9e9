"""What graphs cost beyond weights: the memory that one pass needs at its peak."""

import logging

import torch
from torch import nn

from serve_app.engines.base import ModelInfo
from serve_app.engines.graphs import Graph
from serve_app.engines.memory import ActivationPeak

logger = logging.getLogger(__name__)

_FALLBACK_BYTES_PER_PIXEL = 256
_FP32_BYTES = 4

_Size = tuple[int, int]


class GraphCosts:
    """Bytes by graph and input size: estimated first, then measured once."""

    def __init__(self, streams: int = 1) -> None:
        """Count for up to `streams` passes at once."""
        self._streams = streams
        self._estimated: dict[tuple[str, _Size], int] = {}
        self._measured: dict[tuple[str, _Size], int] = {}

    def total(self, signature: str, info: ModelInfo) -> int:
        """Return the bytes of all passes at once at this model's input size, once known."""
        key = signature, info.imgsz
        return self._streams * (self._measured.get(key) or self._estimated[key])

    def estimate(self, graph: Graph, skeleton: nn.Module, info: ModelInfo) -> int:
        """Find the peak of one pass on the meta device, which takes no memory; return it.

        The skeleton keeps meta tensors from that pass: it must not be run for answers.
        """
        key = graph.signature, info.imgsz
        if key not in self._estimated:
            self._estimated[key] = _dry_run(skeleton, info) * graph.dtype.itemsize // _FP32_BYTES
        return self._estimated[key]

    def assume(self, signature: str, info: ModelInfo, nbytes: int | None = None) -> None:
        """Put in what one pass takes where there was no estimate; None for a rough figure."""
        rough = _rough_bytes(info) if nbytes is None else nbytes
        self._estimated.setdefault((signature, info.imgsz), rough)

    def measure(self, signature: str, info: ModelInfo, nbytes: int) -> None:
        """Take what one pass took; the first one stays, when the process was at its quietest."""
        if (signature, info.imgsz) not in self._measured:
            self._measured[signature, info.imgsz] = nbytes
            logger.info("graph %s needs %d bytes at %s", signature, nbytes, info.imgsz)


def _dry_run(skeleton: nn.Module, info: ModelInfo) -> int:
    known = [*skeleton.parameters(), *skeleton.buffers()]
    try:
        with torch.inference_mode(), ActivationPeak(known) as peak:
            skeleton(torch.empty(1, 3, *info.imgsz, device="meta"))
    except (NotImplementedError, RuntimeError) as error:  # operators without a meta version
        logger.debug("no dry run", exc_info=error)
        return _rough_bytes(info)
    return int(peak.peak_bytes)


def _rough_bytes(info: ModelInfo) -> int:
    height, width = info.imgsz
    return height * width * _FALLBACK_BYTES_PER_PIXEL
