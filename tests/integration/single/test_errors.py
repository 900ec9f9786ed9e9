"""Every error of the contract, provoked over real HTTP."""

import io
import struct
import time
import zlib
from pathlib import Path

import httpx
import pytest
from PIL import Image

from serve_app.errors import ERRORS, DeviceFailedError, ReplicaFailingError
from tests.integration.server import ROOT, Server, wait_until


def _png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


def _picture(image_format: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(data, image_format)
    return data.getvalue()


def _check(answer: httpx.Response, code: str) -> None:
    """The answer is the problem document of `code`."""
    error = ERRORS[code]
    assert (answer.status_code, answer.headers["content-type"]) == (
        error.status,
        "application/problem+json",
    ), answer.text
    problem = answer.json()
    assert problem["code"] == code
    assert problem["status"] == error.status
    assert problem["detail"]
    assert answer.headers["x-request-id"]
    assert (error.status == 503) == ("retry-after" in answer.headers)


@pytest.mark.parametrize("reference", ["no-such-model", "fasteners-n@99", "fasteners-n@stable"])
def test_model_not_found(server: Server, reference: str) -> None:
    """Unknown names, versions and aliases are 404."""
    _check(server.predict(reference, _picture()), "model_not_found")
    _check(server.client.get(f"/v1/models/{reference}"), "model_not_found")


def test_image_too_large(server: Server) -> None:
    """Pixels are counted in the header and bytes before they are read."""
    _check(server.predict("fasteners-n", _png_header(50_000, 50_000)), "image_too_large")
    _check(server.predict("fasteners-n", b"\xff" * (5 * 2**20)), "image_too_large")


def test_unsupported_media_type(server: Server) -> None:
    """What is no image of an accepted format is refused by its content."""
    _check(server.predict("fasteners-n", _picture("GIF")), "unsupported_media_type")
    _check(
        server.client.post("/v1/models/fasteners-n/predict", json={"image": "x"}),
        "unsupported_media_type",
    )


def test_invalid_image(server: Server) -> None:
    """A truncated picture and an empty body are 422."""
    picture = _picture()
    _check(server.predict("fasteners-n", picture[: len(picture) // 2]), "invalid_image")
    _check(server.predict("fasteners-n", b""), "invalid_image")


@pytest.mark.parametrize(
    "params",
    [
        {"conf": "2"},
        {"conf": "nan"},
        {"iou": "-1"},
        {"imgsz": "1"},
        {"max_det": "0"},
        {"classes": "99"},
        {"format": "xml"},
        {"confidence": "0.5"},
    ],
)
def test_invalid_parameter(server: Server, params: dict[str, str]) -> None:
    """A parameter out of range or unknown is 422 and named."""
    answer = server.predict("fasteners-n", _picture(), params)
    _check(answer, "invalid_parameter")
    assert next(iter(params)) in answer.json()["detail"]


def test_model_broken(server: Server, repository: Path) -> None:
    """A corrupt or unsafe file is the model's own trouble, and its code never runs."""
    _check(server.predict("corrupt", _picture()), "model_broken")
    answer = server.predict("malicious", _picture())
    _check(answer, "model_broken")
    assert "system" in answer.json()["detail"]
    assert not (repository / "executed").exists()
    assert server.predict("fasteners-n", _picture()).status_code == 200
    held = {model["key"] for model in server.replica()["models"]}
    assert not held & {"corrupt@1", "malicious@1"}


def test_source_unavailable_says_so_at_once(server: Server) -> None:
    """An official model that cannot be fetched is refused within seconds."""
    started = time.monotonic()
    name = next(
        m["name"]
        for m in server.client.get("/v1/models").json()["models"]
        if m["source"] != "folder"
    )
    _check(server.predict(name, _picture()), "source_unavailable")
    assert time.monotonic() - started < 20


def test_overloaded_and_model_exceeds_budget(server: Server) -> None:
    """No room because of pins is 503; more than the whole budget is 507."""
    server.reconfigure(memory_budget="1GiB", max_models=1, pinned=["codes-n"])
    wait_until(lambda: server.resident() == {"codes-n@1"}, what="the pin")
    _check(server.predict("fasteners-n", _picture()), "overloaded")

    server.reconfigure(memory_budget="1MiB")
    wait_until(lambda: server.replica()["budget_bytes"] == 2**20, what="the small budget")
    _check(server.predict("fasteners-n", _picture()), "model_exceeds_budget")
    server.reconfigure(memory_budget="1GiB")
    wait_until(lambda: server.replica()["budget_bytes"] == 2**30, what="the usual budget")
    assert server.predict("fasteners-n", _picture()).status_code == 200


def test_deadline_exceeded(server: Server) -> None:
    """A client's own deadline is kept."""
    _check(server.predict("fasteners-n", _picture(), {"timeout_s": "0.001"}), "deadline_exceeded")
    assert server.predict("fasteners-n", _picture()).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        b"serve_multiplexed_model_id",
        b"x-request-id",
        b"x-session-id",
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
    ],
)
@pytest.mark.parametrize("value", [b"caf\xe9", b"0", b"-1", b"x" * 4000])
def test_headers_for_ray_serve_do_no_harm(server: Server, name: bytes, value: bytes) -> None:
    """What Ray's proxy would trust does not reach it, so none ends in a 500."""
    answer = server.client.post(
        "/v1/models/fasteners-n/predict", content=_picture(), headers={name: value}
    )
    assert answer.status_code == 200, answer.text


def test_the_header_of_multiplexing_names_a_model(server: Server) -> None:
    """As with Ray Serve's own applications; an unknown name is a 404."""
    header = "serve_multiplexed_model_id"
    answer = server.client.post("/v1/predict", content=_picture(), headers={header: "codes-n"})
    assert answer.headers["x-model-id"] == "codes-n@1"
    _check(
        server.client.post("/v1/predict", content=_picture(), headers={header: "nobody"}),
        "model_not_found",
    )


def test_every_code_of_the_contract_is_provoked_here() -> None:
    """A new error needs a test of its own; no client can make a device or a replica fail."""
    source = Path(__file__).read_text()
    replicas = ROOT / "tests/unit/ingress/test_serve_backend.py"
    assert {code for code in ERRORS if f'"{code}"' not in source} == {
        DeviceFailedError.code,
        ReplicaFailingError.code,
    }
    assert all(name in replicas.read_text() for name in ("DeviceFailedError", "ReplicaFailing"))
