"""Replicas that are simulated."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.fleet.fakes import Clock, FakeFleet


@pytest.fixture
async def fleet() -> AsyncIterator[FakeFleet]:
    """Return three replicas."""
    fleet = FakeFleet(Clock())
    fleet.add("r1", "r2", "r3")
    yield fleet
    await fleet.aclose()
