"""Requests through HAProxy, which `make serve` chooses where it runs."""

import os

import pytest

from serve_app.tuning import haproxy_runs
from tests.integration.front import (
    haproxy_stands_before,
    test_an_answer_has_one_request_id,
    test_detectors_start_with_the_allocators_settings,
    test_headers_that_serve_trusts_do_no_harm,
    test_the_largest_body_reaches_the_model,
)
from tests.integration.server import Server

__all__ = [
    "test_an_answer_has_one_request_id",
    "test_detectors_start_with_the_allocators_settings",
    "test_headers_that_serve_trusts_do_no_harm",
    "test_the_largest_body_reaches_the_model",
]


@pytest.fixture(scope="module")
def front(server: Server) -> Server:
    """The folder's server with nothing in memory."""
    server.reset()
    return server


def test_haproxy_is_used_where_it_runs(front: Server) -> None:
    """Nobody asked for it."""
    assert haproxy_stands_before(front) == haproxy_runs(os.environ)
