"""Requests through Serve's own proxy, for which users can ask; then Ctrl-C.

All other tests here go through the one that `make serve` chooses.
"""

from collections.abc import Iterator
from typing import NamedTuple

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


class Started(NamedTuple):
    """A server, and which models were in memory when it said that it was ready."""

    server: Server
    resident: set[str]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server with Serve's own proxy and a preload; the last test stops it."""
    config = make_config(
        ROOT / "models",
        free_port(),
        args={"max_body_bytes": MAX_BODY_BYTES},
        user_config={"preload": [PRELOADED]},
    )
    with serving(config, tmp_path_factory.mktemp("default"), {HAPROXY_SWITCH: "0"}) as running:
        yield Started(running, running.resident())


@pytest.fixture
def front(started: Started) -> Server:
    """The server, for the tests of front.py."""
    return started.server


def test_preloads_are_resident_when_it_is_ready(started: Started) -> None:
    """Those, and nothing else."""
    assert started.resident == {f"{PRELOADED}@1"}


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
