"""Scans are counted by markers, wherever the same bytes may stand for something else."""

import io
import struct

import pytest
from PIL import Image

from serve_app.engines import decoding
from serve_app.engines.decoding import decode_image
from serve_app.engines.jpeg import MAX_SCANS, has_more_scans
from serve_app.errors import InvalidImageError

END = b"\xff\xd9"
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"ab\xff\x00cd\xff\xd0ef"
"""Of one component, with a stuffed byte and a restart in it."""


def picture(*, progressive: bool = True) -> bytes:
    """Return a small JPEG of three components."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG", progressive=progressive)
    return buffer.getvalue()


def bomb(scans: int) -> bytes:
    """Return a progressive JPEG with so many scans more: its last one again and again."""
    whole = picture()
    start = whole.rindex(b"\xff\xda")
    return whole[:start] + whole[start : -len(END)] * (scans + 1) + END


def frame(code: int, components: int = 3) -> bytes:
    """Return the beginning of a JPEG, as far as its frame."""
    body = struct.pack(">BHHB", 8, 16, 16, components) + b"\x01\x11\x00" * components
    return b"\xff\xd8" + struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def count(data: bytes) -> int:
    """Return how many scans are found."""
    return next(most for most in range(1000) if not has_more_scans(data, most))


def test_scans_are_counted() -> None:
    """Those of Pillow's script, and what is added to them."""
    own = count(picture())
    assert own == 10
    assert count(bomb(30)) == own + 30
    assert count(picture(progressive=False)) == 1


@pytest.mark.parametrize(
    ("data", "scans"),
    [
        (frame(0xC2) + SCAN * 3 + END, 3),
        (frame(0xC2) + SCAN * 3, 3),  # cut off
        (frame(0xC2) + SCAN + END + SCAN * 9, 1),  # what follows is no part of it
        (frame(0xC2) + (b"\xff\xff\xff" + SCAN) * 5 + END, 5),  # fill bytes
        (frame(0xC2) + b"\xff\xe1\x00\x0c" + b"\xff\xda" * 5 + SCAN + END, 1),  # a thumbnail's
        (frame(0xC2) + b"\xff\xe1\x00\x00" + SCAN * 2 + END, 2),  # an impossible length
        (frame(0xC0) + SCAN * 4 + END, 4),  # each of one component of three
        (frame(0xC0, components=1) + SCAN * 4 + END, 1),  # no decoder reads a second one
        (frame(0xC2, components=1) + SCAN * 4 + END, 4),
        (b"\x89PNG" + SCAN * 100, 0),
        (b"\xff\xd8", 0),
        (b"", 0),
    ],
)
def test_only_markers_count(data: bytes, scans: int) -> None:
    """As a decoder would come across them."""
    assert count(data) == scans


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Usual progressive pictures are not."""
    assert decode_image(picture()).shape == (256, 256, 3)
    assert decode_image(bomb(MAX_SCANS - 10)).shape == (256, 256, 3)
    monkeypatch.setattr(decoding, "_decode_plain_jpeg", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InvalidImageError, match="more than 64 scans"):
        decode_image(bomb(MAX_SCANS - 9))
