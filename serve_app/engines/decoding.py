"""Decodes pictures to what `YOLO(path)` would read from the same bytes, strictly.

OpenCV reads a truncated picture as far as it goes and fills the rest with grey; a client would get
an answer for half its picture. So each picture is first decoded by something that complains.
"""

import functools
import io
import logging
import struct
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError
from ultralytics.utils import patches

from serve_app.engines.guard import blaming
from serve_app.engines.jpeg import MAX_SCANS, has_more_scans
from serve_app.errors import (
    ImageTooLargeError,
    InvalidImageError,
    ServeAppError,
)
from serve_app.types import ImageArray

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")

# OpenCV would print a line for every malformed picture.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Ultralytics replaces `Image.open` by one that looks for further plug-ins on unreadable files.
_open_image = getattr(patches, "_image_open", Image.open)
_ORIENTATION = 0x0112
_PLAIN_JPEG_MODES = {"RGB", "L"}
_ROTATIONS = {
    3: cv2.ROTATE_180,
    5: cv2.ROTATE_90_CLOCKWISE,
    6: cv2.ROTATE_90_CLOCKWISE,
    7: cv2.ROTATE_90_COUNTERCLOCKWISE,
    8: cv2.ROTATE_90_COUNTERCLOCKWISE,
}
_MIRRORED = {2, 4, 5, 7}
_UPSIDE_DOWN = 4
_CHANNELS = 3
_ODD_BYTES_PER_PIXEL = 8
"""Four channels of 16 bits, in Pillow or in OpenCV; the one has gone when the other decodes."""
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
)


def decode_image(data: bytes, max_pixels: int | None = None) -> ImageArray:
    """Return the picture as (height, width, 3) BGR, EXIF orientation applied (any thread).

    Of an animation or a document the first frame is read.

    Raises:
        InvalidImageError: truncated, corrupt, no JPEG, PNG, WebP, BMP or TIFF, or a JPEG of far too
            many scans
        ImageTooLargeError: more than `max_pixels` pixels by its own header
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused or accepted here anyway
        header = _read_header(data)
        _check_pixels(header.width, header.height, max_pixels)
        _check_scans(data)
        image = _decode_plain_jpeg(data, header)
        if image is None:
            _check_whole(header)
            header.close()  # or its pixels would lie beside OpenCV's
            image = _decode_any(data, header)
    # The bodies of some formats may disagree with the header that was checked.
    _check_pixels(image.shape[1], image.shape[0], max_pixels)
    return image


def decoded_bytes(data: bytes) -> int:
    """Return about what `decode_image` will take, by the header, in bytes; 0 without one."""
    try:
        header = _read_header(data)
    except (InvalidImageError, ImageTooLargeError):
        return 0
    plain = header.format == "JPEG" and header.mode in _PLAIN_JPEG_MODES
    return header.width * header.height * (_CHANNELS if plain else _ODD_BYTES_PER_PIXEL)


def decode_guarded(function: Callable[[bytes], T], data: bytes) -> T:
    """Return `function(data)`, for whatever reads a picture's bytes (any thread).

    Raises:
        InvalidImageError: anything unexpected, which is logged; the picture is to blame
        OverloadedError: the memory ran out
    """
    return blaming(_broken_picture, functools.partial(function, data))


def _broken_picture(error: Exception) -> ServeAppError:
    logger.warning("a picture upsets its decoder", exc_info=error)
    return InvalidImageError(
        f"the picture cannot be decoded ({type(error).__name__}); save it anew as a JPEG, PNG, "
        "WebP, BMP or TIFF, and see this server's log for more"
    )


def _read_header(data: bytes) -> Image.Image:
    try:
        header: Image.Image = _open_image(io.BytesIO(data), formats=FORMATS)
        return header
    except (UnidentifiedImageError, ImportError):
        raise InvalidImageError(
            "the picture cannot be read: expected a whole JPEG, PNG, WebP, BMP or TIFF"
        ) from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError("the picture has far too many pixels") from None
    except (*_DAMAGE, MemoryError, OverflowError):
        raise InvalidImageError("the picture's header is corrupt") from None


def _check_pixels(width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise ImageTooLargeError(
            f"the picture has {width}x{height} pixels, more than the {max_pixels} allowed"
        )


def _check_scans(data: bytes) -> None:
    """Refuse a progressive JPEG that would be decoded again and again, whatever it is called."""
    if has_more_scans(data, MAX_SCANS):
        raise InvalidImageError(
            f"the JPEG has more than {MAX_SCANS} scans, which none needs; save it anew"
        )


def _decode_plain_jpeg(data: bytes, header: Image.Image) -> ImageArray | None:
    """Decode in one fast and strict go; None when it is no JPEG or an odd one."""
    if header.format != "JPEG" or header.mode not in _PLAIN_JPEG_MODES:
        return None
    try:
        image: ImageArray = simplejpeg.decode_jpeg(data, colorspace="BGR", strict=True)
    except (ValueError, RuntimeError, MemoryError):
        return None
    return _orient(image, _read_orientation(header))


def _read_orientation(header: Image.Image) -> int:
    try:
        orientation = header.getexif().get(_ORIENTATION, 1)
    except (*_DAMAGE, MemoryError, OverflowError):
        return 1
    return orientation if isinstance(orientation, int) else 1


def _orient(image: ImageArray, orientation: int) -> ImageArray:
    if orientation in _ROTATIONS:
        image = cv2.rotate(image, _ROTATIONS[orientation]).astype(np.uint8, copy=False)
    if orientation in _MIRRORED:
        axis = 0 if orientation == _UPSIDE_DOWN else 1
        image = cv2.flip(image, axis).astype(np.uint8, copy=False)
    return image


def _check_whole(header: Image.Image) -> None:
    """Let Pillow decode the picture, which raises where OpenCV would guess."""
    try:
        header.load()
    except Image.DecompressionBombError:
        raise ImageTooLargeError("the picture has far too many pixels") from None
    except (*_DAMAGE, MemoryError, OverflowError, RuntimeError) as error:
        truncated = "truncated" in str(error)
        raise InvalidImageError(
            f"the {header.format} picture is {'truncated' if truncated else 'corrupt'}"
        ) from None


def _decode_any(data: bytes, header: Image.Image) -> ImageArray:
    encoded = np.frombuffer(data, np.uint8)
    image: npt.NDArray[Any] | None
    try:
        image = _decode_tiff(encoded) if header.format == "TIFF" else None
        if image is None:
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error as error:
        if getattr(error, "code", None) == cv2.Error.StsNoMem:
            raise MemoryError from None
        image = None
    if image is None:
        raise InvalidImageError(f"this kind of {header.format} picture cannot be decoded")
    if image.dtype == np.uint16:
        image = np.right_shift(image, 8, casting="unsafe")
    return np.ascontiguousarray(image, dtype=np.uint8)


def _decode_tiff(encoded: npt.NDArray[np.uint8]) -> npt.NDArray[Any] | None:
    """Read the first page as Ultralytics does: the first three bands of colour pages."""
    found, pages = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=(0, 1))
    return pages[0][..., :3] if found and pages[0].ndim == 3 else None
