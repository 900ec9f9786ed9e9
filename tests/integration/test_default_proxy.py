"""Requests through Serve's own proxy, for which users can ask; then Ctrl-C.

All other tests here go through the one that `make serve` chooses.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from serve_app.tuning import HAPROXY_SWITCH
from tests.integration.front import (
    MAX_BODY_BYTES,
    haproxy_stands_before,
    test_an_answer_has_one_request_id,
    test_detectors_start_with_the_allocators_settings,
    test_headers_that_serve_trusts_do_no_harm,
    test_the_largest_body_reaches_the_model,
)
from tests.integration.server import (
    ROOT,
    Server,
    free_port,
    make_config,
    renewed,
    serving,
    session_processes,
    stop,
)

__all__ = [
    "test_an_answer_has_one_request_id",
    "test_detectors_start_with_the_allocators_settings",
    "test_headers_that_serve_trusts_do_no_harm",
    "test_the_largest_body_reaches_the_model",
]

PRELOADED = "codes-n"
"""No test here asks for it."""


@pytest.fixture(scope="module")
def preloaded() -> dict[Server, set[str]]:
    """Which models were in memory when a server said that it was ready."""
    return {}


@pytest.fixture(scope="module")
def running(
    preloaded: dict[Server, set[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Server]]:
    """A server with Serve's own proxy and a preload; a second one where a test follows Ctrl-C."""

    @contextmanager
    def start() -> Iterator[Server]:
        config = make_config(
            ROOT / "models",
            free_port(),
            args={"max_body_bytes": MAX_BODY_BYTES},
            user_config={"preload": [PRELOADED]},
        )
        folder = tmp_path_factory.mktemp("default")
        with serving(config, folder, {HAPROXY_SWITCH: "0"}) as server:
            preloaded[server] = server.resident()
            yield server

    with renewed(start) as server:
        yield server


@pytest.fixture
def front(running: Callable[[], Server]) -> Server:
    """The server, for the tests of front.py."""
    return running()


def test_preloads_are_resident_when_it_is_ready(
    front: Server, preloaded: dict[Server, set[str]]
) -> None:
    """Those, and nothing else."""
    assert preloaded[front] == {f"{PRELOADED}@1"}


def test_haproxy_is_not_used_where_it_is_switched_off(front: Server) -> None:
    """Although it would run here."""
    assert not haproxy_stands_before(front)


def test_ctrl_c_ends_it_and_leaves_no_process(front: Server) -> None:
    """An interrupt stops Ray and every replica; `serving` asks that of the others' HAProxy, too."""
    session = front.process.pid
    assert session_processes(session)
    assert stop(front.process) == []
    assert front.process.returncode == 0
    assert session_processes(session) == []
    assert front.log.read_text().strip().endswith("serve_app: stopped")
