"""Both ways that requests can take: HAProxy, which `make serve` chooses, and Serve's own proxy.

All other tests here go through the one that `make serve` chooses.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.tuning import DETECTOR, HAPROXY_SWITCH, haproxy_runs
from tests.integration.server import Server, free_port, make_config, serving, session_processes

ROOT = Path(__file__).parents[2]
MAX_BODY_BYTES = 4 * 2**20
"""Of the session's server; as much as gRPC takes by default."""


@pytest.fixture(scope="module", params=["as chosen", "default proxy"])
def either(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The session's server, then one with Serve's own proxy."""
    if request.param == "as chosen":
        yield request.getfixturevalue("server")
        return
    args = {"max_body_bytes": MAX_BODY_BYTES}
    config = make_config(ROOT / "models", free_port(), args=args)
    with serving(config, tmp_path_factory.mktemp("default"), {HAPROXY_SWITCH: "0"}) as running:
        yield running


def _padded(picture: bytes, size: int) -> bytes:
    """Return the JPEG with bytes after its end, `size` in all; decoders ignore them."""
    return picture + b"\0" * (size - len(picture))


def test_haproxy_is_used_where_it_runs(either: Server, request: pytest.FixtureRequest) -> None:
    """And not where it is switched off."""
    chosen = request.node.callspec.params["either"] == "as chosen"
    commands = session_processes(either.process.pid)
    used = any("haproxy" in command.split(" ")[0] for command in commands)
    assert used == (chosen and haproxy_runs(os.environ))


@pytest.mark.parametrize("sent", [None, "mine-1"])
def test_an_answer_has_one_request_id(
    either: Server, scenes: dict[str, bytes], sent: str | None
) -> None:
    """The client's own, or a new one."""
    headers = {"x-request-id": sent} if sent else {}
    answer = either.client.get("/v1/models", headers=headers)
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
    either: Server, scenes: dict[str, bytes], name: bytes, value: bytes
) -> None:
    """Whoever takes them out of the request, sees them cleaned."""
    answer = either.client.post(
        "/v1/models/fasteners-n/predict", content=scenes["fasteners-1"], headers={name: value}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model-id"] == "fasteners-n@1"


def test_the_largest_body_reaches_the_model(either: Server, scenes: dict[str, bytes]) -> None:
    """In one piece and in chunks; one byte more is refused."""
    picture = _padded(scenes["fasteners-1"], MAX_BODY_BYTES)
    answers = [
        either.predict("fasteners-n", scenes["fasteners-1"]),
        either.predict("fasteners-n", picture),
        either.client.post(
            "/v1/models/fasteners-n/predict",
            content=iter([picture[:1000], picture[1000:]]),
            headers={"content-type": "image/jpeg", "expect": "100-continue"},
        ),
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    (found,) = {str(answer.json()["images"][0]["results"]) for answer in answers}
    assert found != "[]"
    assert either.predict("fasteners-n", picture + b"\0").status_code == 413


def test_detectors_start_with_the_allocators_settings(either: Server) -> None:
    """The C library reads them as a process starts, not later."""
    environ = Path(f"/proc/{either.replica()['pid']}/environ").read_bytes().split(b"\0")
    for name, value in DETECTOR.items():
        assert f"{name}={os.environ.get(name, value)}".encode() in environ
