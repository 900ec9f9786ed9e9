"""Models that lie in a local or mounted folder."""

import asyncio
from pathlib import Path

from serve_app.errors import SourceUnavailableError
from serve_app.types import ModelSpec


class FolderSource:
    """Takes `spec.location` as a path; nothing is copied."""

    async def fetch(self, spec: ModelSpec) -> Path:
        """Return the path, having read a byte of it.

        Raises:
            SourceUnavailableError: the file has vanished or cannot be read
        """
        path = Path(spec.location)
        await asyncio.to_thread(_check_readable, path, spec)
        return path


def _check_readable(path: Path, spec: ModelSpec) -> None:
    # Opened rather than asked about: on a mounted folder only reading tells.
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise SourceUnavailableError(
            f"the file of {spec.key} cannot be read ({error.strerror}); put it back into the model "
            "repository"
        ) from None
