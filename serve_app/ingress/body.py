"""Reads the body of a predict call: counted while it streams, given up at the limit.

A raw body is one picture, whatever its Content-Type claims: what it is shows in its first bytes.
A multipart form holds pictures in `file` parts and parameters in the others.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serve_app.errors import (
    ImageTooLargeError,
    InvalidImageError,
    InvalidParameterError,
    ServeAppError,
    UnsupportedMediaError,
)
from serve_app.ingress.images import ACCEPTED
from serve_app.ingress.limits import Holding, InFlight, IngressLimits

FILE_FIELD = "file"
_MULTIPART = "multipart/form-data"
_MAX_FIELDS = 64
_MAX_FIELD_BYTES = 16 * 1024
_HOW = (
    "send one picture as the body (curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' "
    "URL) or several as a form (curl -F file=@a.jpg -F file=@b.jpg URL)"
)


@dataclass(frozen=True, slots=True)
class Upload:
    """One encoded picture; `label` names it in messages."""

    data: bytes
    label: str


@dataclass(frozen=True, slots=True)
class PredictBody:
    """What a client sent, unchecked: pictures, and the form's parameters in their order."""

    uploads: tuple[Upload, ...]
    fields: tuple[tuple[str, str], ...] = ()


def check_headers(request: Request, limits: IngressLimits, in_flight: InFlight) -> None:
    """Refuse what the headers alone show to be wrong, before the body is read.

    Raises:
        ImageTooLargeError: the body is announced to be too long
        OverloadedError: there is no room for it beside the requests in progress
        UnsupportedMediaError: it is JSON or compressed
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit():
        if int(length[:20]) > limits.max_body_bytes:
            raise _too_long(limits)
        in_flight.check(int(length))
    media_type = _media_type(request)
    if media_type.endswith(("/json", "+json")):
        raise UnsupportedMediaError(
            f"a body of {media_type[:100]!r}: pictures by URL or base64 are not supported; {_HOW}"
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        raise UnsupportedMediaError(f"Content-Encoding {encoding[:50]!r}: send it uncompressed")


async def read_body(request: Request, limits: IngressLimits, holding: Holding) -> PredictBody:
    """Return the pictures and form fields of the request; `holding` counts their bytes.

    Raises:
        ImageTooLargeError: it is longer, or has more files, than the limits allow
        InvalidImageError: there is no picture in it
        InvalidParameterError: the form is malformed
        OverloadedError: there is no room for it beside the requests in progress
    """
    stream = _counted(request, limits, holding)
    if _media_type(request) == _MULTIPART:
        return await _read_form(request, stream, limits)
    data = b"".join([chunk async for chunk in stream])
    if not data:
        raise InvalidImageError(f"the body is empty: expected a {ACCEPTED} picture; {_HOW}")
    return PredictBody((Upload(data, "the body"),))


async def _counted(
    request: Request, limits: IngressLimits, holding: Holding
) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limits.max_body_bytes:
            raise _too_long(limits)
        holding.take(len(chunk))
        yield chunk
        # Chunks that wait already would be parsed without a break: others get a turn.
        await asyncio.sleep(0)


class _Parser(MultiPartParser):
    """Starlette's parser; the body's own limit keeps files in memory, so none goes to disk."""

    spool_max_size = 2**40


async def _read_form(
    request: Request, stream: AsyncGenerator[bytes, None], limits: IngressLimits
) -> PredictBody:
    parser = _Parser(
        request.headers,
        stream,
        max_files=limits.max_images_per_request,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except ServeAppError:
        raise
    except MultiPartException as error:
        raise _explain(error, limits) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # Odd charsets and header parameters lead the standard library's parsers to these.
        raise InvalidParameterError(f"the multipart form is malformed: {error}") from error
    try:
        return await _from_form(form)
    finally:
        await form.close()


async def _from_form(form: FormData) -> PredictBody:
    files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
    fields = [(name, part) for name, part in form.multi_items() if isinstance(part, str)]
    for name, _ in files:
        if name != FILE_FIELD:
            raise InvalidParameterError(
                f"a file is named {name[:100]!r}: expected {FILE_FIELD!r}, which may be repeated"
            )
    if any(name == FILE_FIELD for name, _ in fields):
        raise InvalidParameterError(
            f"{FILE_FIELD!r} is a text field: send it with a filename (curl -F file=@photo.jpg)"
        )
    if not files:
        raise InvalidImageError(f"the form has no {FILE_FIELD!r}: {_HOW}")
    labels = [_label(index, len(files), part) for index, (_, part) in enumerate(files)]
    parts = [await part.read() for _, part in files]
    uploads = tuple(Upload(data, label) for data, label in zip(parts, labels, strict=True))
    return PredictBody(uploads, tuple(fields))


def _label(index: int, count: int, part: UploadFile) -> str:
    name = repr((part.filename or "")[:80])
    return f"the file {name}" if count == 1 else f"file {index + 1} of {count} ({name})"


def _explain(error: MultiPartException, limits: IngressLimits) -> ServeAppError:
    if error.message.startswith("Too many files"):
        return ImageTooLargeError(
            f"more than {limits.max_images_per_request} pictures: spread them over several requests"
        )
    return InvalidParameterError(f"the multipart form is malformed: {error.message}")


def _too_long(limits: IngressLimits) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"the body is longer than the {limits.max_body_bytes} bytes accepted: scale the picture "
        "down, compress it more, or send fewer in one request"
    )


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
