"""Draws what lies under the parts: grounds of several materials and clutter without labels."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from demo.drawing import Array, Colour, Image, jitter, pick, pixels, scaled

LETTERS = list("ABCDEFGHKLMNPRSTUXYZ0123456789")


def _flat(width: int, height: int, colour: Colour) -> Image:
    return np.full((height, width, 3), colour, np.uint8)


def _grain(width: int, height: int, cells: tuple[int, int], rng: np.random.Generator) -> Array:
    """Return smooth noise (height, width) around zero made of `cells` (across, down) patches."""
    coarse = rng.normal(0, 1, (max(cells[1], 1), max(cells[0], 1))).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _lit(image: Image, light: Array) -> Image:
    return pixels(image + light[..., None])


def conveyor(width: int, height: int, rng: np.random.Generator) -> Image:
    """Draw a belt of dark rubber with ribs, at times between two rails."""
    image = _flat(width, height, jitter((62, 60, 58), rng, 25))
    step = int(rng.integers(14, 60))
    for x in range(int(rng.integers(step)), width, step):
        shift = int(rng.integers(-4, 5)) if rng.random() < 0.1 else 0
        cv2.line(image, (x, 0), (x + shift, height), (44, 43, 42), 2)
        cv2.line(image, (x + 2, 0), (x + 2 + shift, height), (84, 82, 80), 1)
    image = _lit(image, 6 * _grain(width, height, (width // 3, height // 3), rng))
    if rng.random() < 0.5:
        rail = int(height * rng.uniform(0.04, 0.1))
        for y in (0, height - rail):
            cv2.rectangle(image, (0, y), (width, y + rail), pick([(170, 170, 168)], rng), -1)
    return image


def metal(width: int, height: int, rng: np.random.Generator) -> Image:
    """Draw a brushed metal plate with scratches and bores."""
    level = int(rng.integers(110, 210))
    image = _flat(width, height, jitter((level, level, level), rng, 6))
    image = _lit(image, 7 * _grain(width, height, (width // 90, height), rng))
    for _ in range(int(rng.integers(0, 25))):
        start = rng.integers(0, (width, height))
        end = start + rng.integers(-60, 60, 2)
        cv2.line(image, start.tolist(), end.tolist(), scaled((level,) * 3, 0.85), 1, cv2.LINE_AA)
    return image


def wood(width: int, height: int, rng: np.random.Generator) -> Image:
    """Draw planks with grain."""
    image = _flat(width, height, pick([(95, 145, 190), (70, 105, 150), (130, 170, 205)], rng))
    image = _lit(image, 14 * _grain(width, height, (5, height // 5), rng))
    image = _lit(image, 8 * _grain(width, height, (9, height // 2), rng))
    plank = int(rng.integers(90, 220))
    for y in range(int(rng.integers(plank)), height, plank):
        cv2.line(image, (0, y), (width, y), (40, 65, 95), 2)
    return image


def board(width: int, height: int, rng: np.random.Generator) -> Image:
    """Draw a circuit board with traces, pads and vias."""
    ground = pick([(55, 95, 30), (60, 80, 25), (110, 60, 30), (35, 35, 35)], rng)
    image, trace = _flat(width, height, ground), scaled(ground, 1.35)
    for _ in range(int(rng.integers(10, 40))):
        at = rng.integers(0, (width, height))
        thick = int(rng.integers(1, 4))
        for _ in range(int(rng.integers(1, 5))):
            step = np.array([(1, 0), (0, 1), (1, 1), (1, -1)])[rng.integers(4)]
            end = at + step * int(rng.integers(-120, 120))
            cv2.line(image, at.tolist(), end.tolist(), trace, thick, cv2.LINE_AA)
            at = end
    for _ in range(int(rng.integers(0, 50))):
        at, radius = rng.integers(0, (width, height)), int(rng.integers(2, 6))
        cv2.circle(image, at.tolist(), radius, (150, 195, 205), -1, cv2.LINE_AA)
        cv2.circle(image, at.tolist(), radius // 2, (30, 30, 30), -1, cv2.LINE_AA)
    return image


def cardboard(width: int, height: int, rng: np.random.Generator) -> Image:
    """Draw corrugated board with fibres and at times a strip of tape."""
    image = _flat(width, height, pick([(120, 160, 190), (105, 145, 178), (140, 180, 205)], rng))
    image = _lit(image, 4 * _grain(width, height, (width // 10, 1), rng))
    image = _lit(image, 6 * _grain(width, height, (width // 4, height // 3), rng))
    if rng.random() < 0.4:
        y, tall = int(rng.integers(height)), int(rng.integers(30, 80))
        image[y : y + tall] = (image[y : y + tall] * 0.6 + 60).astype(np.uint8)
    return image


def tray(width: int, height: int, rng: np.random.Generator) -> Image:
    """Draw a plastic tray or a cutting mat with a grid."""
    ground = pick([(150, 90, 40), (60, 60, 170), (110, 130, 60), (170, 170, 165)], rng)
    image, step = _flat(width, height, ground), int(rng.integers(30, 160))
    edge, thick = scaled(ground, rng.uniform(0.6, 1.4)), int(rng.integers(1, 5))
    start_x, start_y = rng.integers(0, step, 2)
    for x in range(int(start_x), width, step):
        cv2.line(image, (x, 0), (x, height), edge, thick)
    for y in range(int(start_y), height, step):
        cv2.line(image, (0, y), (width, y), edge, thick)
    return _lit(image, 3 * _grain(width, height, (width // 4, height // 4), rng))


def gradient(width: int, height: int, rng: np.random.Generator) -> Image:
    """Draw a smooth change between four random colours, as an out-of-focus ground gives."""
    corners = rng.integers(20, 240, (2, 2, 3)).astype(np.float32)
    if rng.random() < 0.5:  # nearly neutral, as most benches are
        corners = corners.mean(2, keepdims=True) + rng.normal(0, 8, (2, 2, 3)).astype(np.float32)
    wide = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    return pixels(wide)


GROUNDS: tuple[Callable[[int, int, np.random.Generator], Image], ...] = (
    conveyor,
    metal,
    wood,
    board,
    cardboard,
    tray,
    gradient,
)


def draw_ground(width: int, height: int, rng: np.random.Generator) -> Image:
    """Draw a random ground of shape (height, width, 3)."""
    return GROUNDS[int(rng.integers(len(GROUNDS)))](width, height, rng)


def add_clutter(image: Image, count: int, rng: np.random.Generator) -> None:
    """Draw `count` random shapes, wires, stains and writings that no label names."""
    for _ in range(count):
        kind = CLUTTER[int(rng.integers(len(CLUTTER)))]
        colour = jitter((128, 128, 128), rng, 110)
        at = rng.integers(0, (image.shape[1], image.shape[0]))
        kind(image, at, min(image.shape[:2]) * rng.uniform(0.04, 0.2), colour, rng)


def _blob(image: Image, at: Array, size: float, colour: Colour, rng: np.random.Generator) -> None:
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    radii = size * rng.uniform(0.3, 0.8, len(angles))
    points = at + np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
    cv2.fillPoly(image, [points.astype(np.int32)], colour, cv2.LINE_AA)


def _coin(image: Image, at: Array, size: float, colour: Colour, rng: np.random.Generator) -> None:
    axes = (int(size / 2), int(size / 2 * rng.uniform(0.5, 1)))
    angle = float(rng.uniform(0, 180))
    cv2.ellipse(image, at.tolist(), axes, angle, 0, 360, colour, -1, cv2.LINE_AA)
    edge = scaled(colour, 0.7)
    cv2.ellipse(image, at.tolist(), axes, angle, 0, 360, edge, 2, cv2.LINE_AA)


def _wire(image: Image, at: Array, size: float, colour: Colour, rng: np.random.Generator) -> None:
    steps = rng.normal(0, size * 0.4, (6, 2)).cumsum(0).cumsum(0) * 0.4
    curve = cv2.resize((at + steps).astype(np.float32), (2, 60), interpolation=cv2.INTER_CUBIC)
    thick = int(rng.integers(1, 6))
    cv2.polylines(image, [curve.astype(np.int32)], False, colour, thick, cv2.LINE_AA)


def _plate(image: Image, at: Array, size: float, colour: Colour, rng: np.random.Generator) -> None:
    sides = (float(size), float(size * rng.uniform(0.15, 1)))
    corners = cv2.boxPoints((at.tolist(), sides, float(rng.uniform(0, 180))))
    cv2.fillPoly(image, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    cv2.polylines(image, [corners.astype(np.int32)], True, scaled(colour, 0.6), 1, cv2.LINE_AA)


def _writing(
    image: Image, at: Array, size: float, colour: Colour, rng: np.random.Generator
) -> None:
    text = "".join(rng.choice(LETTERS, int(rng.integers(2, 9))))
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX]))
    cv2.putText(image, text, at.tolist(), font, size / 70, colour, 2, cv2.LINE_AA)


CLUTTER: tuple[Callable[[Image, Array, float, Colour, np.random.Generator], None], ...] = (
    _blob,
    _coin,
    _wire,
    _plate,
    _writing,
)
