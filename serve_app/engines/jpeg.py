"""Counts the scans of a JPEG by its markers, without decoding it. Pure.

A decoder goes over the whole picture once for each scan, however few bytes that has: some kilobytes
with thousands of scans would keep it busy for minutes. Pictures of one scan have one, progressive
ones about ten.
"""

import re

MAX_SCANS = 64
"""The scripts of optimisers make 20 at most."""

_START = b"\xff\xd8"
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_SINGLE_PASS_FRAMES = {0xC0, 0xC1, 0xC9}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""One that means something, within a scan too: no stuffed byte, fill byte or restart."""
_LENGTH_BYTES = 2


def has_more_scans(data: bytes, most: int) -> bool:
    """Return whether a JPEG has more than `most` scans; False of whatever is no JPEG."""
    if not data.startswith(_START):
        return False
    scans = components = 0
    at, single_pass = len(_START), False
    while scans <= most and (marker := _MARKER.search(data, at)) is not None:
        code, at = data[marker.end() - 1], marker.end()
        if code == _END_OF_IMAGE:
            break
        segment = data[at : at + max(int.from_bytes(data[at : at + 2], "big"), _LENGTH_BYTES)]
        if code in _FRAMES:
            components, single_pass = _byte(segment, 7), code in _SINGLE_PASS_FRAMES
        elif code == _START_OF_SCAN:
            scans += 1
            if single_pass and _byte(segment, 2) == components:
                break  # decoders take no further one; so the common kind is not searched through
        at += len(segment)
    return scans > most


def _byte(segment: bytes, at: int) -> int:
    return segment[at] if at < len(segment) else 0
