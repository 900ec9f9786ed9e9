"""Draws the parts of the codes line: QR codes, bar codes and Data Matrix codes on labels."""

from __future__ import annotations

import string

import cv2
import numpy as np
from numpy.typing import NDArray

from demo.drawing import Colour, Image, Part, box, jitter, layer, opaque, pick

PAPERS: tuple[Colour, ...] = (
    (248, 248, 248),
    (225, 236, 242),
    (190, 222, 236),
    (205, 205, 205),
    (120, 225, 245),
)
INKS: tuple[Colour, ...] = ((18, 18, 18), (40, 36, 34), (70, 30, 24), (30, 30, 60))
Modules = NDArray[np.bool_]


def qr(rng: np.random.Generator) -> Part:
    """Draw a QR code that encodes a random text (versions 1 to 4)."""
    letters = list(string.ascii_uppercase + string.digits)
    text = "".join(rng.choice(letters, int(rng.integers(6, 44))))
    modules = cv2.QRCodeEncoder.create().encode(text) == 0
    rows, columns = np.flatnonzero(modules.any(1)), np.flatnonzero(modules.any(0))
    cut = modules[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _label(cut, int(rng.integers(7, 10)), rng)


def datamatrix(rng: np.random.Generator) -> Part:
    """Draw a Data Matrix: solid left and lower edge, dashed right and upper edge, random data."""
    size = int(rng.choice([10, 12, 14, 16, 18, 20]))
    modules = rng.random((size, size)) < 0.5
    steps = np.arange(size)
    modules[0], modules[:, -1] = steps % 2 == 0, steps % 2 == 1
    modules[:, 0], modules[-1] = True, True
    return _label(modules, 220 // size, rng)


def barcode(rng: np.random.Generator) -> Part:
    """Draw a bar code: bars one to four modules wide, at times with its digits below."""
    widths = rng.choice([1, 2, 3, 4], int(rng.integers(24, 44)) * 2 + 1, p=[0.45, 0.3, 0.15, 0.1])
    row = np.concatenate([np.full(w, i % 2 == 0) for i, w in enumerate(widths)])
    tall = int(len(row) * rng.uniform(0.28, 0.6))
    return _label(np.repeat(row[None], tall, 0), 2, rng, digits=bool(rng.random() < 0.6))


def _label(modules: Modules, scale: int, rng: np.random.Generator, digits: bool = False) -> Part:
    paper, ink = pick(PAPERS, rng), pick(INKS, rng)
    if not digits and rng.random() < 0.12:  # engraved: light on dark
        paper, ink = ink, jitter((205, 205, 205), rng)
    code = modules.repeat(scale, 0).repeat(scale, 1)
    quiet = int(rng.integers(2, 5)) * max(scale, 4)
    below = 30 if digits else 0
    height, width = code.shape
    sides = [quiet + int(rng.integers(0, 60)) * int(rng.random() < 0.3) for _ in range(4)]
    canvas = layer(width + sides[0] + sides[1], height + sides[2] + sides[3] + below)
    alpha = int(rng.integers(225, 256))
    far = (canvas.shape[1], canvas.shape[0])
    box(canvas, (0, 0), far, opaque(paper, alpha))
    inside = (slice(sides[2], sides[2] + height), slice(sides[0], sides[0] + width))
    extent = np.zeros(canvas.shape[:2], np.uint8)
    extent[inside] = 255
    canvas[inside][code] = np.array(opaque(ink)).astype(np.uint8)
    if digits:
        _digits(canvas, (sides[0], sides[2] + height), width, ink, rng)
    return Part(canvas, extent)


def _digits(
    canvas: Image, corner: tuple[int, int], width: int, ink: Colour, rng: np.random.Generator
) -> None:
    count = max(4, width // 24)
    text = "".join(str(d) for d in rng.integers(0, 10, count))
    at = (corner[0] + 4, corner[1] + 24)
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.8, opaque(ink), 2, cv2.LINE_AA)
