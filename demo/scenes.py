"""Composes a scene from a seed: ground, clutter, parts with shadows, light and camera faults."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from demo.backgrounds import add_clutter, draw_ground
from demo.drawing import Array, Image, Part, pixels
from demo.parts import LINES, MIXED, classes, painter

SIZES: tuple[tuple[int, int], ...] = ((640, 480), (640, 640), (640, 400), (480, 640))
LONGER = {"bolt": 1.35, "pin": 1.3, "resistor": 1.4, "led": 1.1, "qr": 1.1, "barcode": 1.45}
MAX_OVERLAP = 0.2  # of the smaller box: more would hide what makes a part recognisable
MAX_OUTSIDE = 0.25  # share of a part's box that may lie beyond the picture's edge
TRIES = 25


Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


class Label(NamedTuple):
    """A labelled part: class name and box in pixels (x0, y0, x1, y1)."""

    name: str
    box: Box


class Scene(NamedTuple):
    """A picture, uint8 BGR (height, width, 3), and its labels."""

    image: Image
    labels: list[Label]


class _Placed(NamedTuple):
    bgra: Image
    left: int
    top: int
    box: Box  # of what the label names
    room: Box  # of all that is drawn: a code's paper is larger than the code


def draw_scene(
    line: str, seed: int, size: tuple[int, int] | None = None, counts: tuple[int, int] = (2, 10)
) -> Scene:
    """Draw the scene number `seed` of a line, `size` (width, height) in pixels.

    Parts of the other lines lie about without labels, so that a model learns to leave them alone.
    """
    rng = np.random.default_rng([seed, len(line), ord(line[0]), ord(line[1])])
    width, height = size or SIZES[int(rng.integers(len(SIZES)))]
    image = draw_ground(width, height, rng)
    add_clutter(image, int(rng.integers(0, 9)), rng)
    labels: list[Label] = []
    taken: list[Box] = []
    shadow = (rng.uniform(-0.06, 0.06, 2), rng.uniform(0.15, 0.6))
    own = classes(line)
    base = rng.uniform(0.12, 0.3)
    for name in _names(line, own, counts, rng):
        placed = _place(name, base, (width, height), taken, rng)
        if placed is None:
            continue
        _compose(image, placed, shadow[0], shadow[1])
        taken.append(placed.room)
        if name in own:
            labels.append(Label(name, _clip(placed.box, width, height)))
    return Scene(_camera(_light(image, rng), rng), labels)


def _names(
    line: str, own: list[str], counts: tuple[int, int], rng: np.random.Generator
) -> list[str]:
    """Return the parts to place in a random order: own ones and foreign ones."""
    names = [str(n) for n in rng.choice(own, int(rng.integers(counts[0], counts[1] + 1)))]
    if line != MIXED:
        if rng.random() < 0.06:  # a scene without any part of this line
            names = []
        foreign = [n for other in LINES if other != line for n in LINES[other]]
        names += [str(n) for n in rng.choice(foreign, int(rng.integers(0, 5)))]
    rng.shuffle(names)
    return names


def _place(
    name: str,
    base: float,
    size: tuple[int, int],
    taken: list[Box],
    rng: np.random.Generator,
) -> _Placed | None:
    """Draw and turn one part and find room for it, or return None where there is none."""
    part = painter(name)(rng)
    scale = min(size) * base * rng.uniform(0.8, 1.3) * LONGER.get(name, 1.0)
    turned = _turn(part, scale, rng)
    marked, drawn = _bounds(turned.extent), _bounds(turned.bgra[..., 3])
    if marked is None or drawn is None:
        return None
    wide, tall = drawn[2] - drawn[0], drawn[3] - drawn[1]
    for _ in range(TRIES):
        margin = rng.uniform(0, MAX_OUTSIDE) if rng.random() < 0.15 else 0.0
        low = (-margin * wide, -margin * tall)
        high = (size[0] - (1 - margin) * wide, size[1] - (1 - margin) * tall)
        if high[0] <= low[0] or high[1] <= low[1]:
            return None
        at = rng.uniform(low, high)
        left, top = round(at[0] - drawn[0]), round(at[1] - drawn[1])
        room = _moved(drawn, left, top)
        if all(_overlap(room, other) <= MAX_OVERLAP for other in taken):
            return _Placed(turned.bgra, left, top, _moved(marked, left, top), room)
    return None


def _bounds(mask: Image) -> Box | None:
    """Return the box around the covered pixels of a mask, or None where hardly any are."""
    ys, xs = np.nonzero(mask > 100)
    if len(xs) < 20:
        return None
    return float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1


def _moved(box: Box, right: float, down: float) -> Box:
    return box[0] + right, box[1] + down, box[2] + right, box[3] + down


def _turn(part: Part, size: float, rng: np.random.Generator) -> Part:
    """Turn, tilt and shrink a part so that its longer side measures `size` pixels."""
    height, width = part.extent.shape
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.25:  # belts align parts more often than chance does
        angle = round(angle / (np.pi / 2)) * np.pi / 2 + rng.normal(0, 0.04)
    zoom = size / max(width, height)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    tilt = np.diag([1.0, rng.uniform(0.8, 1.0)])
    shear = np.array([[1.0, rng.uniform(-0.1, 0.1)], [0.0, 1.0]])
    matrix = 2 * zoom * shear @ tilt @ turn  # twice the size, halved below against jagged edges
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ matrix.T
    low, high = corners.min(0), corners.max(0)
    wide, tall = (int(np.ceil(v / 2)) * 2 + 4 for v in high - low)
    affine = np.hstack([matrix, (2 - low)[:, None]])
    bgra, extent = _shrink_first(part.bgra, zoom), _shrink_first(part.extent, zoom)
    affine[:, :2] *= width / bgra.shape[1]
    return Part(_warp(bgra, affine, wide, tall), _warp(extent, affine, wide, tall))


def _warp(drawn: Image, affine: Array, wide: int, tall: int) -> Image:
    """Move a drawing into (tall, wide) pixels and average those down to half the size."""
    moved = cv2.warpAffine(drawn, affine, (wide, tall), flags=cv2.INTER_LINEAR)
    half = cv2.resize(moved, (wide // 2, tall // 2), interpolation=cv2.INTER_AREA)
    return pixels(half)


def _shrink_first(drawn: Image, zoom: float) -> Image:
    """Average a drawing down where the warp would otherwise skip pixels (codes would flicker)."""
    if zoom >= 0.4:
        return drawn
    factor = 2.2 * zoom
    return pixels(cv2.resize(drawn, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))


def _compose(image: Image, placed: _Placed, drop: Array, depth: float) -> None:
    """Lay a part and its soft shadow on the picture, in place."""
    size = max(placed.bgra.shape[:2])
    soft = max(1.0, size * 0.03)
    pad = int(4 * soft + size * 0.07)
    bgra = cv2.copyMakeBorder(placed.bgra, pad, pad, pad, pad, cv2.BORDER_CONSTANT)
    moved = np.array([[1, 0, drop[0] * size], [0, 1, drop[1] * size]], np.float32)
    alpha = bgra[..., 3].astype(np.float32) / 255
    sharp = cv2.warpAffine(alpha, moved, alpha.shape[::-1])
    shade = cv2.GaussianBlur(sharp, (0, 0), soft) * depth
    left, top = placed.left - pad, placed.top - pad
    x0, y0 = max(left, 0), max(top, 0)
    x1 = min(left + alpha.shape[1], image.shape[1])
    y1 = min(top + alpha.shape[0], image.shape[0])
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    under = image[y0:y1, x0:x1] * (1 - shade[part])[..., None]
    result = bgra[part][..., :3] + under * (1 - alpha[part])[..., None]
    image[y0:y1, x0:x1] = pixels(result)


def _light(image: Image, rng: np.random.Generator) -> Image:
    """Light the scene unevenly, cast large shadows and shift the white balance."""
    height, width = image.shape[:2]
    corners = rng.uniform(0.65, 1.25, (2, 2)).astype(np.float32)
    light = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.3:  # the shadow of something beside the camera
        edge: Array = np.zeros((height, width), np.float32)
        at, angle = rng.uniform(0.2, 0.8, 2) * (width, height), rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:height, :width]
        edge[(x - at[0]) * np.cos(angle) + (y - at[1]) * np.sin(angle) > 0] = 1
        edge = cv2.GaussianBlur(edge, (0, 0), rng.uniform(3, 25))
        light = light * (1 - edge * rng.uniform(0.2, 0.5))
    tint = rng.uniform(0.92, 1.08, 3) * rng.uniform(0.75, 1.2)
    return pixels(image * light[..., None] * tint)


def _camera(image: Image, rng: np.random.Generator) -> Image:
    """Add what cameras add: blur, noise and JPEG compression."""
    kind = rng.random()
    if kind < 0.5:
        image = pixels(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.5)))
    elif kind < 0.6:
        length = int(rng.integers(3, 8))
        kernel: Array = np.zeros((length, length), np.float32)
        kernel[length // 2] = 1 / length
        centre = (length / 2 - 0.5, length / 2 - 0.5)
        spin = cv2.getRotationMatrix2D(centre, float(rng.uniform(0, 180)), 1)
        kernel = cv2.warpAffine(kernel, spin, (length, length))
        image = pixels(cv2.filter2D(image, -1, kernel / max(kernel.sum(), 1e-3)))
    if rng.random() < 0.7:
        noise = rng.normal(0, rng.uniform(1, 10), image.shape).astype(np.float32)
        image = pixels(image + noise)
    quality = int(rng.integers(45, 96))
    packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)


def _clip(box: Box, width: int, height: int) -> Box:
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


def _overlap(one: Box, other: Box) -> float:
    """Return the shared area as a share of the smaller box."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    areas = ((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return wide * tall / min(areas)
