"""Drawing tools shared by all parts: premultiplied BGRA layers, shading and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[float, float]

SHIFT = 4  # OpenCV draws with 1/16 pixel precision

METALS: tuple[Colour, ...] = (
    (205, 200, 196),  # zinc
    (176, 174, 172),  # stainless steel
    (150, 152, 156),  # raw steel
    (92, 178, 205),  # brass
    (96, 196, 212),  # yellow chromate
    (78, 74, 70),  # black oxide
    (110, 140, 190),  # copper
)


@dataclass(frozen=True)
class Part:
    """A drawn part: premultiplied BGRA pixels and the mask (H, W) that its label's box encloses."""

    bgra: Image
    extent: Image


def layer(width: int, height: int) -> Image:
    """Return an empty transparent BGRA layer of shape (height, width, 4)."""
    return np.zeros((height, width, 4), np.uint8)


def pixels(values: Array) -> Image:
    """Return `values` as uint8, clipped to 0-255."""
    return np.clip(values, 0, 255).astype(np.uint8)


def solid(bgra: Image) -> Part:
    """Make a part whose box encloses all that is drawn on `bgra`."""
    return Part(bgra, np.where(bgra[..., 3] > 100, 255, 0).astype(np.uint8))


def opaque(colour: Sequence[float], alpha: int = 255) -> tuple[float, float, float, float]:
    """Return `colour` as a premultiplied BGRA value with the given alpha (0-255)."""
    b, g, r = (float(np.clip(c, 0, 255)) * alpha / 255 for c in colour)
    return b, g, r, float(alpha)


def scaled(colour: Colour, factor: float) -> Colour:
    """Return `colour` made lighter or darker by `factor`, clipped to 0-255."""
    b, g, r = (int(np.clip(c * factor, 0, 255)) for c in colour)
    return b, g, r


def jitter(colour: Colour, rng: np.random.Generator, amount: int = 6) -> Colour:
    """Return `colour` with each channel moved by up to `amount`."""
    b, g, r = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in colour)
    return b, g, r


def pick(colours: Sequence[Colour], rng: np.random.Generator) -> Colour:
    """Return one of `colours`, slightly varied in brightness and a little in hue."""
    colour = scaled(colours[int(rng.integers(len(colours)))], rng.uniform(0.82, 1.12))
    return jitter(colour, rng)


def _fixed(value: float) -> int:
    return round(value * (1 << SHIFT))


def polygon(canvas: Image, points: Sequence[Point], colour: Sequence[float]) -> None:
    """Fill a polygon given in pixels."""
    fixed = np.array([[_fixed(x), _fixed(y)] for x, y in points], np.int32)
    cv2.fillPoly(canvas, [fixed], tuple(colour), cv2.LINE_AA, SHIFT)


def circle(
    canvas: Image, centre: Point, radius: float, colour: Sequence[float], thickness: int = -1
) -> None:
    """Draw a circle, filled unless a thickness in pixels is given."""
    at = (_fixed(centre[0]), _fixed(centre[1]))
    cv2.circle(canvas, at, _fixed(radius), tuple(colour), thickness, cv2.LINE_AA, SHIFT)


def line(
    canvas: Image, start: Point, end: Point, colour: Sequence[float], thickness: int = 1
) -> None:
    """Draw a straight line between two points in pixels."""
    a, b = ((_fixed(p[0]), _fixed(p[1])) for p in (start, end))
    cv2.line(canvas, a, b, tuple(colour), thickness, cv2.LINE_AA, SHIFT)


def box(canvas: Image, start: Point, end: Point, colour: Sequence[float]) -> None:
    """Fill an upright rectangle between two corners in pixels."""
    (x0, y0), (x1, y1) = start, end
    polygon(canvas, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)


def rounded_box(
    canvas: Image, start: Point, end: Point, radius: float, colour: Sequence[float]
) -> None:
    """Fill a rectangle with rounded corners."""
    (x0, y0), (x1, y1) = start, end
    r = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    box(canvas, (x0 + r, y0), (x1 - r, y1), colour)
    box(canvas, (x0, y0 + r), (x1, y1 - r), colour)
    for x in (x0 + r, x1 - r):
        for y in (y0 + r, y1 - r):
            circle(canvas, (x, y), r, colour)


def hexagon(centre: Point, radius: float, start: float = 0.0) -> list[Point]:
    """Return the six corners of a regular hexagon turned by `start` radians."""
    angles = start + np.arange(6) * np.pi / 3
    return [(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in angles]


def shade(canvas: Image, factor: Array) -> None:
    """Multiply the colours by `factor` (broadcast to (H, W)), in place, kept below alpha."""
    lit = canvas[..., :3] * np.broadcast_to(factor, canvas.shape[:2])[..., None]
    canvas[..., :3] = np.minimum(lit, canvas[..., 3:]).astype(np.uint8)


def cylinder(size: int, top: float, bottom: float, rng: np.random.Generator) -> Array:
    """Return the light (size, 1) across a lying cylinder between rows `top` and `bottom`."""
    across = np.clip((np.arange(size) + 0.5 - top) / max(bottom - top, 1), 0, 1)
    where, width = rng.uniform(0.25, 0.45), rng.uniform(0.08, 0.2)
    highlight = rng.uniform(0.2, 0.6) * np.exp(-(((across - where) / width) ** 2))
    light: Array = 0.5 + 0.55 * np.sin(np.pi * across) ** 0.7 + highlight
    return light[:, None]


def turned(width: int, height: int, rng: np.random.Generator, depth: float = 0.25) -> Array:
    """Return the light (height, width) on a flat face with circular tool marks."""
    y, x = np.mgrid[:height, :width]
    angle = np.arctan2(y - height / 2, x - width / 2)
    phase = rng.uniform(0, 2 * np.pi)
    light: Array = 1 + depth * np.cos(2 * angle - phase) + 0.1 * np.cos(angle - phase)
    return light


def over(base: Image, top: Image) -> None:
    """Lay the premultiplied layer `top` over `base`, in place; both have the same shape."""
    rest = 1 - top[..., 3:].astype(np.float32) / 255
    base[...] = pixels(top + base * rest)
