"""Names the parts of each line and the function that draws each of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from demo import codes, components, fasteners
from demo.drawing import Part

Draw = Callable[[np.random.Generator], Part]

LINES: dict[str, dict[str, Draw]] = {
    "fasteners": {
        "washer": fasteners.washer,
        "nut": fasteners.nut,
        "bolt": fasteners.bolt,
        "pin": fasteners.pin,
    },
    "components": {
        "resistor": components.resistor,
        "capacitor": components.capacitor,
        "chip": components.chip,
        "led": components.led,
    },
    "codes": {
        "qr": codes.qr,
        "barcode": codes.barcode,
        "datamatrix": codes.datamatrix,
    },
}
MIXED = "mixed"  # a scene in which the parts of every line are labelled


def classes(line: str) -> list[str]:
    """Return the class names of a line in label order; `mixed` has those of every line."""
    if line == MIXED:
        return [name for parts in LINES.values() for name in parts]
    return list(LINES[line])


def painter(name: str) -> Draw:
    """Return the function that draws the part called `name`."""
    return next(parts[name] for parts in LINES.values() if name in parts)
