"""Pictures are judged by their header; nothing is decoded, whatever size they claim."""

import struct
import tracemalloc
import zlib

import httpx
import pytest
from PIL import Image, ImageFile

from serve_app.errors import ImageTooLargeError, InvalidImageError, UnsupportedMediaError
from serve_app.ingress.images import check_image
from serve_app.settings import AppArgs, SettingsError
from serve_app.types import MAX_IMAGE_PIXELS
from tests.unit.ingress.fakes import picture


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming(kind: str, side: int) -> bytes:
    """Return a few bytes that claim to be a picture of side x side pixels."""
    if kind == "PNG":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"x")
    if kind == "BMP":
        info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + info + b"\0" * 4
    if kind == "WEBP":
        canvas = struct.pack("<I", side - 1)[:3]
        content = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + canvas + canvas
        return b"RIFF" + struct.pack("<I", len(content)) + content
    data = picture("JPEG")
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", side, side) + data[start + 9 :]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG"])
@pytest.mark.parametrize("side", [9_000, 12_000, 16_000, 50_000])
def test_a_bomb_costs_nothing(kind: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below, between and above Pillow's own limits, ours is told, and nothing is allocated."""

    def load(_: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    data = claiming(kind, side)
    assert len(data) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises((ImageTooLargeError, InvalidImageError)) as caught:
            check_image(data, 64_000_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000
    if kind != "WEBP":  # an animated canvas without a frame is damaged, too
        assert isinstance(caught.value, ImageTooLargeError)


def test_the_limit_itself_is_accepted() -> None:
    """A picture may have exactly as many pixels as the limit says."""
    check_image(picture(size=(100, 100)), 10_000)
    with pytest.raises(ImageTooLargeError, match="101 x 100 = 10100 pixels"):
        check_image(picture(size=(101, 100)), 10_000)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_cut_header_is_invalid(kind: str) -> None:
    """Every length of a cut file is refused or left to the decoder, never a crash."""
    data = picture(kind)
    with pytest.raises((InvalidImageError, UnsupportedMediaError)):
        check_image(data[:12], 64_000_000)
    for length in range(1, min(len(data), 400)):
        try:
            check_image(data[:length], 64_000_000)
        except (InvalidImageError, UnsupportedMediaError):
            continue


def test_a_header_without_end_is_given_up() -> None:
    """Pillow would walk through a million empty parts for seconds, and keep them all."""
    size = struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size) + _chunk(b"abCd", b"") * 100_000
    jpeg = b"\xff\xd8" + b"\xff\xfe\x00\x02" * 100_000
    for data in (png, jpeg):
        with pytest.raises(InvalidImageError, match="too many parts"):
            check_image(data, 64_000_000)


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"GIF89a\x01\0\x01\0", "a GIF"),
        (b"%PDF-1.4", "a PDF"),
        (b"\0\0\0\x20ftypheic", "HEIC"),
        (b"\n <svg>", "markup"),
        (b'{"image": "..."}', "JSON"),
        (b"data:image/png;base64,iVBORw0KGgo=", "data URL"),
        (b"https://example.com/a.jpg", "URL"),
        (b"\0" * 100, "no JPEG, PNG, WebP, BMP or TIFF"),
    ],
)
def test_something_else_is_named(data: bytes, looks: str) -> None:
    """Who sent the wrong thing learns what it was."""
    with pytest.raises(UnsupportedMediaError, match=looks):
        check_image(data, 64_000_000)


def test_other_formats_that_pillow_knows_are_refused() -> None:
    """Fewer parsers mean fewer ways in."""
    with pytest.raises(UnsupportedMediaError):
        check_image(picture("GIF"), 64_000_000)
    with pytest.raises(UnsupportedMediaError):
        check_image(picture("PPM"), 64_000_000)


async def test_a_bomb_is_a_413_to_the_client(client: httpx.AsyncClient) -> None:
    """The same check stands before every predict call."""
    answer = await client.post("/v1/models/parts/predict", content=claiming("PNG", 50_000))
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")


def test_limits_are_checked_when_they_are_set() -> None:
    """Zero, or more than decoders take, is a mistake in the configuration."""
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) in range(MAX_IMAGE_PIXELS - 1, MAX_IMAGE_PIXELS + 2)
    for key, value in (
        ("max_image_pixels", MAX_IMAGE_PIXELS + 1),
        ("max_body_bytes", 0),
        ("request_timeout_s", float("nan")),
    ):
        with pytest.raises(SettingsError, match=key):
            AppArgs.parse({key: value})
