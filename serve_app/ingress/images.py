"""Checks pictures by their header: nothing is decoded here, whatever size it claims."""

import io

from PIL import (
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from serve_app.errors import ImageTooLargeError, InvalidImageError, UnsupportedMediaError

_FORMATS = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
)
ACCEPTED = "JPEG, PNG, WebP, BMP or TIFF"

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
        size = _header_size(data)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"{label} has far more pixels than the {max_pixels} accepted: scale it down"
        ) from error
    except Exception as error:
        # Pillow's parsers raise whatever a damaged header leads them to, struct.error to OSError.
        raise InvalidImageError(
            f"{label} begins like a picture but its header is damaged or cut off: {error}"
        ) from error
    if size is None:
        raise UnsupportedMediaError(_explain(data, label))
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{label} has {width} x {height} = {width * height} pixels, more than the "
            f"{max_pixels} accepted: scale it down"
        )


def _header_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height), None when it is none of our formats.

    Not by Image.open: Ultralytics replaces that with one that installs packages for what it does
    not know, and it warns of sizes that are for our own limit to judge.
    """
    for name in _FORMATS:
        open_header, accepts = Image.OPEN[name]
        if accepts is None or accepts(data[:16]):
            with open_header(_Header(data), "") as image:
                return image.size
    return None


class _Header(io.BytesIO):
    """An encoded picture that ends Pillow's patience.

    32 MiB of empty JPEG segments took it 15 s and 660 MB; real headers need some hundred reads.
    """

    _MAX_READS = 10_000

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = self._MAX_READS
        self._bytes_left = 2 * len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file; raise OSError when the header never ends."""
        chunk = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(chunk)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise OSError("it has too many parts")
        return chunk


def _explain(data: bytes, label: str) -> str:
    head = data[:64].lstrip()
    kinds = (kind for start, kind in _OTHERS.items() if head.startswith(start))
    kind = "HEIC, AVIF or a video" if data[4:8] == b"ftyp" else next(kinds, None)
    looks = f": it looks like {kind}" if kind else ""
    return f"{label} is no {ACCEPTED} picture{looks}"
