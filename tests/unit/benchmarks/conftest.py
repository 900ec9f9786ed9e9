"""What the tests of the benchmarks share."""

from pathlib import Path

import pytest


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A file to send."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"picture")
    return str(path)
