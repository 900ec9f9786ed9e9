"""Pictures are decoded to what Ultralytics reads from a file, or refused; bytes never crash."""

import io
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from ultralytics.utils.patches import imread

from serve_app.engines import decoding
from serve_app.engines.decoding import decode_guarded, decode_image, decoded_bytes
from serve_app.errors import ImageTooLargeError, InvalidImageError, OverloadedError
from tests.support.checkpoints import BUS, ZIDANE

PHOTO = Image.open(BUS).resize((203, 271))
DEEP = np.random.default_rng(0).integers(0, 65536, (40, 50, 3)).astype(np.uint16)


def pillow(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """Return the photograph as Pillow writes it."""
    buffer = io.BytesIO()
    PHOTO.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(kind: str, orientation: int) -> bytes:
    """Return the photograph with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return pillow(kind, exif=exif)


def broken_exif() -> bytes:
    """Return a sound picture whose EXIF block ends in its own header."""
    data = pillow("JPEG", dpi=(72, 72))
    jfif_end = 4 + int.from_bytes(data[4:6])
    exif = b"Exif\0\0" + b"II+\0\x08\0\0\0"
    return (
        data[:jfif_end] + struct.pack(">2sH", b"\xff\xe1", len(exif) + 2) + exif + data[jfif_end:]
    )


def opencv(suffix: str, pixels: npt.NDArray[np.uint16]) -> bytes:
    """Return pixels as OpenCV writes them."""
    return cv2.imencode(suffix, pixels)[1].tobytes()


CASES: dict[str, Callable[[], bytes]] = {
    "bus.jpg": BUS.read_bytes,
    "zidane.jpg": ZIDANE.read_bytes,
    "progressive.jpg": lambda: pillow("JPEG", progressive=True),
    "444.jpg": lambda: pillow("JPEG", subsampling=0, quality=95),
    "422.jpg": lambda: pillow("JPEG", subsampling=1, quality=30),
    "grey.jpg": lambda: pillow("JPEG", "L"),
    "cmyk.jpg": lambda: pillow("JPEG", "CMYK"),
    **{f"rotated{n}.jpg": lambda n=n: rotated("JPEG", n) for n in range(1, 9)},  # type: ignore[misc]
    **{f"rotated{n}.png": lambda n=n: rotated("PNG", n) for n in (3, 6)},  # type: ignore[misc]
    "broken-exif.jpg": broken_exif,
    "rotated6.webp": lambda: rotated("WEBP", 6),
    "rotated6.tiff": lambda: rotated("TIFF", 6),
    "rgb.png": lambda: pillow("PNG"),
    "alpha.png": lambda: pillow("PNG", "RGBA"),
    "palette.png": lambda: pillow("PNG", "P"),
    "grey.png": lambda: pillow("PNG", "L"),
    "grey-alpha.png": lambda: pillow("PNG", "LA"),
    "bits.png": lambda: pillow("PNG", "1"),
    "deep.png": lambda: opencv(".png", DEEP),
    "deep-grey.png": lambda: opencv(".png", DEEP[..., 0]),
    "photo.webp": lambda: pillow("WEBP"),
    "lossless-alpha.webp": lambda: pillow("WEBP", "RGBA", lossless=True),
    "animated.webp": lambda: pillow("WEBP", save_all=True, append_images=[PHOTO.rotate(90)]),
    "rgb.bmp": lambda: pillow("BMP"),
    "palette.bmp": lambda: pillow("BMP", "P"),
    "rgb.tiff": lambda: pillow("TIFF"),
    "alpha.tiff": lambda: pillow("TIFF", "RGBA"),
    "grey.tiff": lambda: pillow("TIFF", "L"),
    "lzw.tiff": lambda: pillow("TIFF", compression="tiff_lzw"),
    "pages.tiff": lambda: pillow("TIFF", save_all=True, append_images=[PHOTO.rotate(90)]),
    "deep.tiff": lambda: opencv(".tiff", DEEP),
}


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_ultralytics(name: str, tmp_path: Path) -> None:
    """Bit for bit what predicting from a file sees."""
    data = CASES[name]()
    path = tmp_path / name
    path.write_bytes(data)
    expected = imread(str(path))

    image = decode_image(data)

    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("name", ["bus.jpg", "progressive.jpg", "rgb.png", "photo.webp", "rgb.bmp"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated_pictures_are_refused(name: str, share: float) -> None:
    """OpenCV would fill the rest with grey."""
    data = CASES[name]()

    with pytest.raises(InvalidImageError, match="truncated|corrupt|cannot be read"):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"GIF89a" + bytes(50), b"<html>", bytes(1000), b"\x89PNG\r\n\x1a\n"]
)
def test_other_bytes_are_refused(data: bytes) -> None:
    """Neither another format nor a bare signature is a picture."""
    with pytest.raises(InvalidImageError):
        decode_image(data)


def test_gif_is_refused() -> None:
    """Whole, but not a format that is served."""
    with pytest.raises(InvalidImageError, match="JPEG, PNG, WebP, BMP or TIFF"):
        decode_image(pillow("GIF", "P"))


def test_pixels_are_limited_by_the_header_before_decoding() -> None:
    """The limit counts pixels, exactly."""
    data = pillow("PNG")

    assert decode_image(data, max_pixels=203 * 271).shape == (271, 203, 3)
    with pytest.raises(ImageTooLargeError, match="203x271"):
        decode_image(data, max_pixels=203 * 271 - 1)


def test_decompression_bomb_is_refused() -> None:
    """A small file that would unfold to gigabytes."""
    buffer = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(buffer, "PNG")

    with pytest.raises(ImageTooLargeError):
        decode_image(buffer.getvalue(), max_pixels=50_000_000)


@pytest.mark.parametrize(
    ("name", "per_pixel"),
    [("rgb.png", 8), ("cmyk.jpg", 8), ("photo.webp", 8), ("444.jpg", 3), ("grey.jpg", 3)],
)
def test_odd_pictures_are_expected_to_take_more(name: str, per_pixel: int) -> None:
    """Those that are decoded twice, and by libraries that keep more than three bytes."""
    assert decoded_bytes(CASES[name]()) == per_pixel * 203 * 271
    assert decoded_bytes(b"nothing") == 0


def test_pillows_pixels_go_before_opencv_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or an odd picture would take twice its size."""
    opened: list[Image.Image] = []
    open_image, imdecode = decoding._open_image, cv2.imdecode

    def remember(file: io.BytesIO, formats: tuple[str, ...]) -> Image.Image:
        opened.append(open_image(file, formats=formats))
        return opened[-1]

    def look(encoded: npt.NDArray[np.uint8], flags: int) -> object:
        with pytest.raises(ValueError, match="closed"):
            opened[-1].im  # noqa: B018
        return imdecode(encoded, flags)

    monkeypatch.setattr(decoding, "_open_image", remember)
    monkeypatch.setattr(cv2, "imdecode", look)
    assert decode_image(CASES["rgb.png"]()).shape == (271, 203, 3)
    assert len(opened) == 1


def _raise(error: Exception) -> Callable[[bytes], int]:
    def function(_: bytes) -> int:
        raise error

    return function


def test_guard_blames_the_picture_for_what_nobody_thought_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Logged with its traceback; what is told already stays as it is."""
    assert decode_guarded(len, b"abc") == 3
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(InvalidImageError, match=r"ZeroDivisionError.*save it anew"),
    ):
        decode_guarded(_raise(ZeroDivisionError()), b"")
    assert caplog.records[0].exc_info is not None
    with pytest.raises(ImageTooLargeError, match="as it is"):
        decode_guarded(_raise(ImageTooLargeError("as it is")), b"")


def test_guard_does_not_blame_the_picture_for_missing_memory() -> None:
    """The client may ask again."""
    with pytest.raises(OverloadedError, match="no memory"):
        decode_guarded(_raise(MemoryError()), b"")


def test_opencv_without_memory_is_no_invalid_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so by a code of its own error."""

    def imdecode(*_: object) -> None:
        error = cv2.error("Failed to allocate")
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(cv2, "imdecode", imdecode)
    with pytest.raises(MemoryError):
        decode_image(CASES["rgb.png"]())


SEEDS = [
    CASES[name]()
    for name in ("grey.jpg", "rotated6.jpg", "alpha.png", "photo.webp", "palette.bmp", "lzw.tiff")
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=12),
    near_start=st.booleans(),
)
def test_hostile_bytes_give_a_picture_or_a_refusal(
    seed: bytes, edits: list[tuple[int, int]], near_start: bool
) -> None:
    """Whatever bytes of a picture are changed, above all in its header."""
    data = bytearray(seed)
    for position, value in edits:
        data[position % (256 if near_start else len(data))] = value

    try:
        image = decode_image(bytes(data), max_pixels=4_000_000)
    except (InvalidImageError, ImageTooLargeError):
        return
    assert image.ndim == 3
    assert image.shape[2] == 3
