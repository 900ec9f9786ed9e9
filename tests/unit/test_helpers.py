"""What the tests' own helpers promise."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import httpx
import pytest

from tests.integration import front
from tests.integration.server import Server, renewed
from tests.support import parity
from tests.unit.replica import fakes


@pytest.mark.parametrize("module", [front, parity, fakes])
def test_asserts_of_helpers_tell_what_they_compared(module: object) -> None:
    """Pytest leaves its mark in a module that it rewrote."""
    assert "@pytest_ar" in vars(module)


def test_a_failure_in_a_helper_shows_the_values() -> None:
    """Here in server.py, of a server with two replicas."""
    two = httpx.MockTransport(lambda _: httpx.Response(200, json={"replicas": ["a", "b"]}))
    server = Server.__new__(Server)
    server.client = httpx.Client(base_url="http://test", transport=two)
    with pytest.raises(AssertionError, match="assert 2 == 1"):
        server.replica()


class _Started:
    """Counts servers that began and that were ended."""

    def __init__(self) -> None:
        self.begun: list[SimpleNamespace] = []
        self.ended = 0

    @contextmanager
    def serving(self) -> Iterator[Server]:
        process = SimpleNamespace(returncode=None)
        process.poll = lambda: process.returncode
        self.begun.append(process)
        yield cast(Server, SimpleNamespace(process=process))
        self.ended += 1


def test_a_server_that_a_test_stopped_is_followed_by_another() -> None:
    """Whichever test comes next: the order does not matter. Each one is seen to its end."""
    started = _Started()
    with renewed(started.serving) as server:
        assert started.begun == []
        first = server()
        assert server() is first
        started.begun[0].returncode = 0
        second = server()
        assert second is not first
        assert server() is second
        assert len(started.begun) == 2
        assert started.ended == 0
    assert started.ended == 2
