"""Draws the parts of the components line: resistors, capacitors, chips and LEDs."""

from __future__ import annotations

import cv2
import numpy as np

from demo.drawing import (
    Colour,
    Image,
    Part,
    box,
    circle,
    cylinder,
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
)

WIRE: Colour = (190, 192, 196)
BODIES: tuple[Colour, ...] = ((150, 195, 222), (205, 175, 120), (150, 190, 130), (120, 150, 200))
BANDS: tuple[Colour, ...] = (
    (20, 20, 20),
    (30, 60, 110),
    (40, 40, 200),
    (30, 120, 235),
    (40, 210, 235),
    (60, 150, 50),
    (190, 90, 40),
    (160, 60, 130),
    (130, 130, 130),
    (235, 235, 235),
    (60, 165, 200),
)
CANS: tuple[Colour, ...] = ((70, 40, 30), (40, 38, 38), (130, 70, 30), (60, 90, 40), (110, 50, 90))
DISCS: tuple[Colour, ...] = ((40, 120, 210), (50, 90, 160), (190, 130, 60), (70, 170, 220))
GLOWS: tuple[Colour, ...] = (
    (50, 50, 225),
    (70, 200, 60),
    (225, 130, 40),
    (50, 210, 240),
    (235, 235, 230),
    (60, 140, 245),
)


def resistor(rng: np.random.Generator) -> Part:
    """Draw an axial resistor: two wires and a body with four or five colour bands."""
    thick, long = rng.uniform(54, 74), rng.uniform(150, 200)
    lead = rng.uniform(20, 60)
    width, height = int(long + 2 * lead + 8), int(thick + 12)
    canvas, body, middle = layer(width, height), layer(width, height), height / 2
    line(canvas, (4, middle), (width - 4, middle), opaque(pick([WIRE], rng)), 8)
    line(canvas, (4, middle - 2), (width - 4, middle - 2), opaque((235, 235, 235)), 2)
    x0, x1, end = 4 + lead, 4 + lead + long, long * 0.2
    colour, waist = opaque(pick(BODIES, rng)), thick * rng.uniform(0.0, 0.12)
    rounded_box(body, (x0, 6 + waist), (x1, 6 + thick - waist), 12, colour)
    for start in (x0, x1 - end):  # the ends are thicker where the caps sit
        rounded_box(body, (start, 6), (start + end, 6 + thick), thick * 0.3, colour)
    count = int(rng.integers(4, 6))
    for i, at in enumerate(np.linspace(x0 + end * 0.45, x1 - end * 0.75, count)):
        inset = 0 if i in (0, count - 1) else waist
        band = opaque(pick(BANDS, rng))
        box(body, (at, 6 + inset), (at + long * 0.065, 6 + thick - inset), band)
    shade(body, cylinder(height, 6, 6 + thick, rng))
    over(canvas, body)
    return solid(canvas)


def capacitor(rng: np.random.Generator) -> Part:
    """Draw a capacitor: an electrolytic can, seen from the side or above, or a ceramic disc."""
    kind = rng.random()
    if kind < 0.55:
        return _can(rng)
    return _disc(rng) if kind < 0.8 else _can_from_above(rng)


def _can(rng: np.random.Generator) -> Part:
    long, thick, lead = rng.uniform(150, 210), rng.uniform(90, 130), rng.uniform(20, 70)
    width, height = int(long + lead + 10), int(thick + 12)
    canvas, body = layer(width, height), layer(width, height)
    sleeve = pick(CANS, rng)
    _leads(canvas, long - 4, (6 + thick * 0.3, 6 + thick * 0.7), (lead, lead * 0.75), rng)
    rounded_box(body, (4, 6), (4 + long, 6 + thick), 12, opaque((190, 190, 188)))
    box(body, (16, 6), (long - 6, 6 + thick), opaque(sleeve))
    stripe = (6 + thick * 0.66, 6 + thick * 0.9)
    box(body, (16, stripe[0]), (long - 6, stripe[1]), opaque(pick([(205, 205, 210)], rng)))
    for x in np.arange(30, long - 20, 34):
        middle = sum(stripe) / 2
        line(body, (x, middle), (x + 16, middle), opaque(scaled(sleeve, 0.8)), 5)
    label = f"{rng.integers(1, 99) * 10}uF"
    white = opaque((225, 225, 225))
    at = (28, int(6 + thick * 0.45))
    cv2.putText(body, label, at, cv2.FONT_HERSHEY_SIMPLEX, 0.95, white, 2, cv2.LINE_AA)
    line(body, (long * 0.93, 8), (long * 0.93, 4 + thick), opaque(scaled(sleeve, 0.6)), 5)
    shade(body, cylinder(height, 6, 6 + thick, rng))
    over(canvas, body)
    return solid(canvas)


def _can_from_above(rng: np.random.Generator) -> Part:
    canvas, middle = layer(260, 260), (130.0, 130.0)
    sleeve = pick(CANS, rng)
    circle(canvas, middle, 122, opaque(sleeve))
    angles = np.linspace(-0.5, 0.5, 9) + rng.uniform(0, 2 * np.pi)
    arc = [(130 + 122 * np.cos(a), 130 + 122 * np.sin(a)) for a in angles]
    polygon(canvas, arc, opaque((205, 205, 210)))
    circle(canvas, middle, 104, opaque((196, 196, 194)))
    circle(canvas, middle, 104, opaque((120, 120, 120)), 3)
    arms = 2 if rng.random() < 0.6 else 3
    for angle in np.arange(arms) * np.pi / arms + rng.uniform(0, np.pi):  # the vent's score
        dx, dy = 78 * np.cos(angle), 78 * np.sin(angle)
        line(canvas, (130 - dx, 130 - dy), (130 + dx, 130 + dy), opaque((110, 110, 110)), 6)
    ramp = np.linspace(rng.uniform(0.7, 1), rng.uniform(1, 1.2), 260)
    shade(canvas, ramp[:, None])
    return solid(canvas)


def _disc(rng: np.random.Generator) -> Part:
    size, lead = 160, rng.uniform(40, 90)
    width, height = int(size + lead + 8), size + 8
    canvas, colour = layer(width, height), pick(DISCS, rng)
    _leads(canvas, size * 0.8, (height * 0.3, height * 0.7), (lead + 20, lead + 20), rng)
    body = layer(width, height)
    circle(body, (size / 2 + 4, height / 2), size / 2, opaque(colour))
    for y in (height * 0.3, height * 0.7):  # the coating runs down the leads
        rounded_box(body, (size * 0.6, y - 12), (size * 1.02, y + 12), 12, opaque(colour))
    at, mark = (36, int(height * 0.56)), f"{rng.integers(10, 99)}{rng.integers(1, 5)}"
    dark = opaque(scaled(colour, 0.35))
    cv2.putText(body, mark, at, cv2.FONT_HERSHEY_SIMPLEX, 1.3, dark, 4, cv2.LINE_AA)
    y, x = np.mgrid[:height, :width]
    spot = np.hypot(x - size * 0.35, y - height * 0.3) / size
    shade(body, 1.3 - 0.7 * spot)
    over(canvas, body)
    return solid(canvas)


def _leads(
    canvas: Image,
    start: float,
    rows: tuple[float, float],
    lengths: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    wire = pick([WIRE], rng)
    for y, long in zip(rows, lengths, strict=True):
        line(canvas, (start, y), (start + long, y), opaque(scaled(wire, 0.75)), 8)
        line(canvas, (start, y - 1), (start + long, y - 1), opaque(scaled(wire, 1.15)), 3)


def chip(rng: np.random.Generator) -> Part:
    """Draw an integrated circuit from above: two or four rows of legs, marking and dot."""
    four = rng.random() < 0.35
    long = rng.uniform(150, 230)
    tall = long if four else long * rng.uniform(0.4, 0.75)
    leg = rng.uniform(16, 30)
    width, height = int(long + 2 * leg + 6), int(tall + 2 * leg + 6)
    canvas, wire = layer(width, height), pick([WIRE, (150, 190, 205)], rng)
    _legs(canvas, long, tall, leg, wire, int(rng.integers(4, 11)))
    if four:
        turned = layer(height, width)
        _legs(turned, tall, long, leg, wire, int(rng.integers(5, 11)))
        over(canvas, np.ascontiguousarray(turned.transpose(1, 0, 2)))
    x0, y0 = leg + 3, leg + 3
    black = pick([(44, 42, 42), (58, 56, 54), (34, 32, 30)], rng)
    box(canvas, (x0, y0), (x0 + long, y0 + tall), opaque(black))
    inner = ((x0 + 6, y0 + 6), (x0 + long - 6, y0 + tall - 6))
    box(canvas, *inner, opaque(scaled(black, 1.3)))
    _marking(canvas, (x0, y0), long, tall, black, rng)
    return solid(canvas)


def _legs(canvas: Image, long: float, tall: float, leg: float, wire: Colour, count: int) -> None:
    pitch = long / count
    for i in range(count):
        x = leg + 3 + pitch * (i + 0.5)
        half = pitch * 0.25
        for y0, y1 in ((3, leg + 6), (leg + tall, tall + 2 * leg + 3)):
            box(canvas, (x - half, y0), (x + half, y1), opaque(wire))
            box(canvas, (x - half, y0), (x - half * 0.3, y1), opaque(scaled(wire, 1.25)))


def _marking(
    canvas: Image,
    corner: tuple[float, float],
    long: float,
    tall: float,
    black: Colour,
    rng: np.random.Generator,
) -> None:
    x0, y0 = corner
    if rng.random() < 0.75:
        dot = (x0 + long * 0.12, y0 + tall * 0.82)
        circle(canvas, dot, min(long, tall) * 0.07, opaque(scaled(black, 0.5)))
        circle(canvas, dot, min(long, tall) * 0.07, opaque(scaled(black, 2.2)), 2)
    if rng.random() < 0.6:
        angles, notch = np.linspace(-np.pi / 2, np.pi / 2, 16), tall * 0.12
        arc = [(x0 + notch * np.cos(a), y0 + tall / 2 + notch * np.sin(a)) for a in angles]
        polygon(canvas, arc, opaque(scaled(black, 0.35)))
    ink = opaque(pick([(205, 205, 205), (160, 160, 160)], rng))
    letters = "".join(rng.choice(list("ABCEHLMNSTX0123456789"), 7))
    for row, text in enumerate((letters, f"{rng.integers(1000, 9999)}")):
        at = (int(x0 + long * 0.2), int(y0 + tall * (0.45 + 0.3 * row)))
        size = long / 210
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, ink, 2, cv2.LINE_AA)


def led(rng: np.random.Generator) -> Part:
    """Draw a light-emitting diode from the side: dome, flange and two unequal legs."""
    thick, dome, lead = 104, rng.uniform(100, 130), rng.uniform(50, 110)
    width, height = int(dome + lead + 30), thick + 28
    canvas, body, middle = layer(width, height), layer(width, height), height / 2
    rows = (middle - thick * 0.18, middle + thick * 0.18)
    _leads(canvas, dome, rows, (lead, lead * rng.uniform(0.7, 0.9)), rng)
    glow, half = pick(GLOWS, rng), thick / 2
    alpha = int(rng.integers(205, 250))  # a little of the ground shines through
    shape = layer(width, height)
    circle(shape, (4 + half, middle), half, opaque(glow))
    box(shape, (4 + half, middle - half), (dome + 4, middle + half), opaque(glow))
    rounded_box(shape, (dome - 12, 6), (dome + 6, height - 6), 4, opaque(scaled(glow, 0.8)))
    over(body, shape)
    cup = opaque(scaled(glow, 0.6))
    polygon(body, [(dome, rows[0] - 10), (dome * 0.6, rows[0] - 4), (dome * 0.6, middle)], cup)
    box(body, (dome * 0.66, rows[1] - 7), (dome, rows[1] + 5), cup)
    spot = (4 + half * 0.8, middle)
    circle(body, spot, half * 0.35, opaque(scaled(glow, 1.35)))
    shade(body, cylinder(height, middle - half, middle + half, rng))
    glint = ((half * 0.7, middle - half * 0.55), (dome * 0.85, middle - half * 0.6))
    line(body, *glint, opaque((250, 250, 250)), 7)
    over(canvas, (body.astype(np.uint16) * alpha // 255).astype(np.uint8))
    return solid(canvas)
