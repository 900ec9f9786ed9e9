"""Draws the parts of the fasteners line: washers, nuts, bolts and pins."""

from __future__ import annotations

import numpy as np

from demo.drawing import (
    METALS,
    Colour,
    Image,
    Part,
    box,
    circle,
    cylinder,
    hexagon,
    layer,
    line,
    opaque,
    over,
    pick,
    polygon,
    rounded_box,
    scaled,
    shade,
    solid,
    turned,
)

CLEAR = (0.0, 0.0, 0.0, 0.0)
SIZE = 300
MIDDLE = (SIZE / 2, SIZE / 2)


def washer(rng: np.random.Generator) -> Part:
    """Draw a flat, spring or toothed washer seen from above."""
    metal, canvas, outer = pick(METALS, rng), layer(SIZE, SIZE), 140.0
    inner = outer * rng.uniform(0.42, 0.68)
    kind = rng.random()
    circle(canvas, MIDDLE, outer, opaque(metal))
    if kind < 0.15:
        _teeth(canvas, outer, metal, int(rng.integers(10, 18)))
    shade(canvas, turned(SIZE, SIZE, rng))
    circle(canvas, MIDDLE, outer - 3, opaque(scaled(metal, 1.25)), 3)
    circle(canvas, MIDDLE, inner + 4, opaque(scaled(metal, 0.65)), 5)
    circle(canvas, MIDDLE, inner, CLEAR)
    if kind > 0.85:  # a spring washer is a ring with a slanted cut
        gap = rng.uniform(8, 16)
        slanted = [(145 - gap, 0), (145 + gap, 0), (175 + gap, 150), (175 - gap, 150)]
        polygon(canvas, slanted, CLEAR)
    return solid(canvas)


def _teeth(canvas: Image, outer: float, metal: Colour, count: int) -> None:
    for angle in np.arange(count) * 2 * np.pi / count:
        x, y = (MIDDLE[i] + outer * f(angle) for i, f in enumerate((np.cos, np.sin)))
        circle(canvas, (x, y), 10, CLEAR)
    circle(canvas, MIDDLE, outer * 0.88, opaque(metal))


def nut(rng: np.random.Generator) -> Part:
    """Draw a hexagon nut with chamfer and thread, at times with a locking ring."""
    metal, canvas, outer = pick(METALS, rng), layer(SIZE, SIZE), 142.0
    flat = outer * np.sqrt(3) / 2
    corners = hexagon(MIDDLE, outer)
    for i in range(6):  # every flank catches its own light
        flank = [MIDDLE, corners[i], corners[(i + 1) % 6]]
        polygon(canvas, flank, opaque(scaled(metal, rng.uniform(0.5, 0.85))))
    top = layer(SIZE, SIZE)
    circle(top, MIDDLE, flat * rng.uniform(0.93, 0.99), opaque(metal))
    shade(top, turned(SIZE, SIZE, rng, 0.18))
    over(canvas, top)
    circle(canvas, MIDDLE, flat * 0.95, opaque(scaled(metal, 1.3)), 3)
    hole = flat * rng.uniform(0.5, 0.66)
    if rng.random() < 0.2:
        ring = pick([(190, 110, 40), (225, 225, 225), (60, 60, 190)], rng)
        circle(canvas, MIDDLE, hole + 14, opaque(ring), 16)
    _thread_hole(canvas, hole, metal, rng)
    return solid(canvas)


def _thread_hole(canvas: Image, hole: float, metal: Colour, rng: np.random.Generator) -> None:
    for i, radius in enumerate(np.linspace(hole + 6, hole * 0.82, 5)):
        circle(canvas, MIDDLE, radius, opaque(scaled(metal, 0.35 if i % 2 == 0 else 0.8)), 4)
    if rng.random() < 0.7:
        circle(canvas, MIDDLE, hole * 0.8, CLEAR)
    else:
        circle(canvas, MIDDLE, hole * 0.8, opaque((18, 18, 20)))


def bolt(rng: np.random.Generator) -> Part:
    """Draw a lying bolt: a hexagon, cap or round head and a threaded shank."""
    metal, thick = pick(METALS, rng), rng.uniform(44, 70)
    long, head = thick * rng.uniform(2.2, 5.0), thick * rng.uniform(0.55, 1.0)
    tall = thick * rng.uniform(1.6, 2.0)
    width, height = int(long + head + 16), int(tall + 16)
    middle, canvas = height / 2, layer(width, height)
    shank = layer(width, height)
    _shank(shank, (head + 6, middle), long, thick, metal, rng)
    shade(shank, cylinder(height, middle - thick / 2, middle + thick / 2, rng))
    over(canvas, shank)
    over(canvas, _head(width, height, head, tall, metal, rng))
    return solid(canvas)


def _shank(
    canvas: Image,
    start: tuple[float, float],
    long: float,
    thick: float,
    metal: Colour,
    rng: np.random.Generator,
) -> None:
    (x, y), half = start, thick / 2
    end, chamfer = x + long, thick * 0.18
    outline = [(x, y - half), (end - chamfer, y - half), (end, y - half * 0.65)]
    outline += [(x0, 2 * y - y0) for x0, y0 in reversed(outline)]
    polygon(canvas, outline, opaque(metal))
    plain = x + long * (rng.uniform(0.15, 0.45) if rng.random() < 0.5 else 0.03)
    pitch = thick * rng.uniform(0.13, 0.22)
    dark, lit = opaque(scaled(metal, 0.4)), opaque(scaled(metal, 1.25))
    for at in np.arange(plain, end - pitch * 0.5, pitch):
        lean = pitch * 0.7
        bottom, top = (at - lean, y + half), (at + lean, y - half)
        line(canvas, bottom, top, dark, max(2, round(pitch * 0.4)))
        line(canvas, (bottom[0] + pitch / 2, bottom[1]), (top[0] + pitch / 2, top[1]), lit, 2)
        for edge in (y - half, y + half):  # the crests make the outline saw-toothed
            circle(canvas, (at + (lean if edge < y else -lean), edge), pitch * 0.28, CLEAR)


def _head(
    width: int, height: int, head: float, tall: float, metal: Colour, rng: np.random.Generator
) -> Image:
    canvas, middle, half = layer(width, height), height / 2, tall / 2
    top, bottom = middle - half, middle + half
    kind = rng.random()
    if kind < 0.5:  # hexagon seen from the side: three faces
        rounded_box(canvas, (4, top), (head + 6, bottom), 6, opaque(metal))
        for start, end, light in ((0, 0.25, 0.62), (0.25, 0.75, 1.1), (0.75, 1, 0.5)):
            face = (top + tall * start, top + tall * end)
            box(canvas, (8, face[0]), (head + 4, face[1]), opaque(scaled(metal, light)))
        return canvas
    if kind < 0.8:  # cap head, knurled
        rounded_box(canvas, (4, top), (head + 6, bottom), 8, opaque(metal))
        for y in np.arange(top + 4, bottom - 2, 6):
            line(canvas, (12, y), (head, y), opaque(scaled(metal, 0.55)), 2)
    else:  # round head
        circle(canvas, (head + 6, middle), min(half, head + 2), opaque(metal))
        box(canvas, (head + 6, 0), (width, height), CLEAR)
    shade(canvas, cylinder(height, top, bottom, rng))
    return canvas


def pin(rng: np.random.Generator) -> Part:
    """Draw a lying dowel pin: a smooth cylinder with chamfered or rounded ends."""
    metal, thick = pick(METALS[:5], rng), rng.uniform(36, 56)
    long = thick * rng.uniform(3.0, 6.5)
    width, height = int(long + 12), int(thick + 12)
    canvas, middle, half = layer(width, height), height / 2, thick / 2
    if rng.random() < 0.5:
        rounded_box(canvas, (6, 6), (6 + long, 6 + thick), half * 0.8, opaque(metal))
    else:
        cut = thick * rng.uniform(0.15, 0.3)
        slope, ends = half * 0.7, (6.0, 6.0 + long)
        left = [(ends[0] + cut, middle - half), (ends[1] - cut, middle - half)]
        right = [(ends[1], middle - slope), (ends[1], middle + slope)]
        rest = [(ends[1] - cut, middle + half), (ends[0] + cut, middle + half)]
        tail = [(ends[0], middle + slope), (ends[0], middle - slope)]
        polygon(canvas, left + right + rest + tail, opaque(metal))
        for x in (ends[0] + cut, ends[1] - cut):
            line(canvas, (x, middle - half), (x, middle + half), opaque(scaled(metal, 0.6)), 2)
    if rng.random() < 0.25:  # a grooved pin
        x = 6 + long * rng.uniform(0.15, 0.3)
        box(canvas, (x, 6), (x + 7, 6 + thick), opaque(scaled(metal, 0.5)))
    shade(canvas, cylinder(height, middle - half, middle + half, rng))
    return solid(canvas)
