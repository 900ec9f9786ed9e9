"""What holds whichever proxy stands in front: tests of a `front`, a server with 4 MiB bodies.

The module that imports them defines the fixture.
"""

import os
from pathlib import Path

import pytest

from serve_app.tuning import DETECTOR
from tests.integration.server import Server, session_processes

MAX_BODY_BYTES = 4 * 2**20
"""As much as gRPC takes by default."""

__all__ = [
    "test_an_answer_has_one_request_id",
    "test_detectors_start_with_the_allocators_settings",
    "test_headers_that_serve_trusts_do_no_harm",
    "test_the_largest_body_reaches_the_model",
]


def haproxy_stands_before(server: Server) -> bool:
    """Return whether a process of the server's is an HAProxy."""
    commands = session_processes(server.process.pid)
    return any("haproxy" in command.split(" ")[0] for command in commands)


def _padded(picture: bytes, size: int) -> bytes:
    """Return the JPEG with bytes after its end, `size` in all; decoders ignore them."""
    return picture + b"\0" * (size - len(picture))


@pytest.mark.parametrize("sent", [None, "mine-1"])
def test_an_answer_has_one_request_id(front: Server, sent: str | None) -> None:
    """The client's own, or a new one."""
    headers = {"x-request-id": sent} if sent else {}
    answer = front.client.get("/v1/models", headers=headers)
    (used,) = answer.headers.get_list("x-request-id")
    assert used == (sent or used) != ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"serve_multiplexed_model_id", b"codes-n"),
        (b"serve-multiplexed-model-id", b"caf\xe9"),
        (b"x-session-id", b"caf\xe9"),
        (b"x-request-id", b"caf\xe9"),
        (b"x-request-timeout-seconds", b"0.001"),
        (b"x-request-disconnect-disabled", b"caf\xe9"),
    ],
)
def test_headers_that_serve_trusts_do_no_harm(
    front: Server, scenes: dict[str, bytes], name: bytes, value: bytes
) -> None:
    """Whoever takes them out of the request, sees them cleaned."""
    answer = front.client.post(
        "/v1/models/fasteners-n/predict", content=scenes["fasteners-1"], headers={name: value}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model-id"] == "fasteners-n@1"


def test_the_largest_body_reaches_the_model(front: Server, scenes: dict[str, bytes]) -> None:
    """In one piece and in chunks; one byte more is refused."""
    picture = _padded(scenes["fasteners-1"], MAX_BODY_BYTES)
    answers = [
        front.predict("fasteners-n", scenes["fasteners-1"]),
        front.predict("fasteners-n", picture),
        front.client.post(
            "/v1/models/fasteners-n/predict",
            content=iter([picture[:1000], picture[1000:]]),
            headers={"content-type": "image/jpeg", "expect": "100-continue"},
        ),
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    (found,) = {str(answer.json()["images"][0]["results"]) for answer in answers}
    assert found != "[]"
    assert front.predict("fasteners-n", picture + b"\0").status_code == 413


def test_detectors_start_with_the_allocators_settings(front: Server) -> None:
    """The C library reads them as a process starts, not later."""
    environ = Path(f"/proc/{front.replica()['pid']}/environ").read_bytes().split(b"\0")
    for name, value in DETECTOR.items():
        assert f"{name}={os.environ.get(name, value)}".encode() in environ
