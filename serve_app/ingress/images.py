"""Checks pictures by their header: nothing is decoded here, whatever size it claims."""

import io

# Named so that Pillow finds these five without importing all of its plugins on a request.
from PIL import (
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from serve_app.errors import ImageTooLargeError, InvalidImageError, UnsupportedMediaError

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
)
ACCEPTED = "JPEG, PNG, WebP, BMP or TIFF"

_BEGINNINGS = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHERS = {
    b"GIF8": "a GIF",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "compressed with gzip",
    b"data:": "a data URL, which is not supported: send the picture's own bytes",
    b"http": "a URL, which is not supported: send the picture's own bytes",
    b"source=": "a form with a source, which is not supported: send the picture's own bytes",
    b"<": "markup (SVG, XML or HTML)",
    b"{": "JSON",
}


def check_image(data: bytes, max_pixels: int, label: str = "the body") -> None:
    """Check kind and size of an encoded picture; `label` names it in the message.

    Raises:
        InvalidImageError: it is empty or its header is damaged
        UnsupportedMediaError: it is something else
        ImageTooLargeError: it has more than `max_pixels`
    """
    if not data:
        raise InvalidImageError(f"{label} is empty: expected a picture ({ACCEPTED})")
    try:
        width, height = _header_size(data)
    except UnidentifiedImageError as error:
        raise _explain(data, label) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(
            f"{label} has far more pixels than the {max_pixels} accepted: scale it down"
        ) from error
    except Exception as error:
        # Pillow's parsers raise whatever a damaged header leads them to, struct.error to OSError.
        raise InvalidImageError(f"{label} has a damaged header: {error}") from error
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{label} has {width} x {height} = {width * height} pixels, more than the "
            f"{max_pixels} accepted: scale it down"
        )


def _header_size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.size


def _explain(data: bytes, label: str) -> InvalidImageError | UnsupportedMediaError:
    if data.startswith(_BEGINNINGS):
        return InvalidImageError(
            f"{label} begins like a picture but its header is damaged or cut off: send it whole"
        )
    kinds = (kind for start, kind in _OTHERS.items() if data.lstrip().startswith(start))
    kind = "HEIC, AVIF or a video" if data[4:8] == b"ftyp" else next(kinds, None)
    looks = f": it looks like {kind}" if kind else ""
    return UnsupportedMediaError(f"{label} is no {ACCEPTED} picture{looks}")
