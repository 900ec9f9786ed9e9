"""What all integration tests share; a Ray start costs seconds, so tests share that, too.

single/ and fleet/ have an application each, which ends with the last test of its folder: nothing
runs beside the tests that come after.
"""

import pytest

from tests.integration.server import ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def scenes() -> dict[str, bytes]:
    """The shipped sample pictures by name."""
    return {path.stem: path.read_bytes() for path in sorted((ROOT / "demo/samples").glob("*.jpg"))}
