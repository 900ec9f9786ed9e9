"""Bodies: limits hold before anything is read or decoded, malformed ones are explained."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from serve_app.ingress.limits import IngressLimits
from tests.unit.ingress.fakes import FakeBackend, picture

URL = "/v1/models/parts/predict"


async def test_a_long_body_is_refused_unread(
    client: httpx.AsyncClient, limits: IngressLimits
) -> None:
    """Content-Length alone is enough."""
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"x"

    headers = {"Content-Length": str(limits.max_body_bytes + 1)}
    answer = await client.post(URL, content=body(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
    assert read == 0


@pytest.mark.parametrize("media_type", ["image/jpeg", "multipart/form-data; boundary=b"])
async def test_a_chunked_body_is_stopped_at_the_limit(
    client: httpx.AsyncClient, limits: IngressLimits, media_type: str
) -> None:
    """Without Content-Length the bytes are counted as they come."""
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while True:
            sent += 1024
            yield b"x" * 1024

    answer = await client.post(URL, content=body(), headers={"Content-Type": media_type})
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
    assert sent <= limits.max_body_bytes + 1024


async def test_too_many_pictures_are_refused(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """One more than the limit is too many."""
    files = [("file", (f"{index}.jpg", picture())) for index in range(4)]
    assert (await client.post(URL, files=files[:3])).status_code == 200
    answer = await client.post(URL, files=files)
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
    assert len(backend.predicted) == 1


@pytest.mark.parametrize(
    ("media_type", "detail"),
    [
        ("application/json", "base64 are not supported"),
        ("application/vnd.x+json; charset=utf-8", "base64 are not supported"),
        ("APPLICATION/JSON", "base64 are not supported"),
    ],
)
async def test_json_is_refused_with_what_to_do_instead(
    client: httpx.AsyncClient, media_type: str, detail: str
) -> None:
    """Clients of hosted services send base64 in JSON."""
    answer = await client.post(URL, content=b"{}", headers={"Content-Type": media_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert detail in answer.json()["detail"]
    assert "curl" in answer.json()["detail"]


async def test_a_compressed_body_is_refused(client: httpx.AsyncClient) -> None:
    """It could unpack to any size."""
    answer = await client.post(URL, content=b"x", headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_an_empty_body_is_explained(client: httpx.AsyncClient) -> None:
    """The message shows how to send a picture."""
    answer = await client.post(URL)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image")
    assert "curl --data-binary @photo.jpg" in answer.json()["detail"]


async def test_a_form_without_a_picture_is_explained(client: httpx.AsyncClient) -> None:
    """No file, an empty file, a wrong field name, a file as text."""
    files = {"photo": ("a.jpg", picture())}
    answer = await client.post(URL, files=files)
    assert answer.status_code == 422
    assert "'photo': expected 'file'" in answer.json()["detail"]
    answer = await client.post(URL, files={"file": ("a.jpg", b"")})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image")
    assert "'a.jpg'" in answer.json()["detail"]
    answer = await client.post(URL, files={"file": (None, b"text")})
    assert "send it with a filename" in answer.json()["detail"]
    answer = await client.post(URL, files={"conf": (None, b"0.5")})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image")


async def test_the_wrong_picture_of_several_is_named(client: httpx.AsyncClient) -> None:
    """One bad file among good ones is found by its place and name."""
    files = [("file", ("a.jpg", picture())), ("file", ("b.gif", b"GIF89a"))]
    answer = await client.post(URL, files=files)
    assert answer.status_code == 415
    assert "file 2 of 2 ('b.gif')" in answer.json()["detail"]


_PART = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
_END = b"--b--\r\n"


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ("", b"x"),
        ("; boundary=", b"x"),
        ("; boundary=" + "b" * 500, b"x"),
        ("; boundary=b", b""),
        ("; boundary=b", b"garbage"),
        ("; boundary=b", b"--b\r\n\r\nx\r\n" + _END),
        ("; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + _END),
        ("; boundary=b", b"--b\r\n" + b"a" * 9000),
        ("; boundary=b", _PART % (b"conf", b"9" * 20_000) + _END),
        ("; boundary=b", _PART % (b"a", b"1") * 100 + _END),
        ("; boundary=b; charset=\0", b"x"),
        ("; boundary=b; charset=undefined", _PART % (b"a", b"x") + _END),
        ("; boundary=b; charset=idna", _PART % (b"\xff", b"\xff") + _END),
        ("; boundary=b; charset=hex", _PART % (b"a", b"x") + _END),
    ],
)
async def test_a_malformed_form_is_no_server_error(
    client: httpx.AsyncClient, options: str, body: bytes
) -> None:
    """Whatever the parser stumbles over, the client is told."""
    headers = {"Content-Type": "multipart/form-data" + options}
    answer = await client.post(URL, content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in ("invalid_parameter", "invalid_image")


async def test_a_slow_upload_ends_at_the_deadline(client: httpx.AsyncClient) -> None:
    """A body that never ends does not hold a place for ever."""

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    answer = await client.post(f"{URL}?timeout_s=0.05", content=body())
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert "reading the body" in answer.json()["detail"]
