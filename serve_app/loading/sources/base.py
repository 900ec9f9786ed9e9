"""What the loader asks of the places where models' files lie."""

from pathlib import Path
from typing import Protocol

from serve_app.types import ModelSpec


class Source(Protocol):
    """Brings a version's file to the local disk."""

    async def fetch(self, spec: ModelSpec) -> Path:
        """Return the local path of the version's file; at once when it is here already.

        Raises:
            ModelNotFoundError: the source answers that it has no such file
            SourceUnavailableError: the source cannot be reached, or the file is gone
        """
