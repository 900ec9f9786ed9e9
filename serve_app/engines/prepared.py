"""Keeps folded weights on disk, so that a model known to this process opens in milliseconds.

Unpickling and folding a checkpoint takes a hundred times longer than reading its tensors. What is
kept is nothing but numbers; all that gives them meaning stays in this process' memory, so a file
from elsewhere can at worst fail its checksum, and the checkpoint is read again.
"""

import hashlib
import logging
import os
import secrets
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from serve_app.engines.checkpoint import Description
from serve_app.engines.files import FileIdentity
from serve_app.engines.weights import Layout, Weights, allocate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes a block of numbers a model again. checksum: CRC-32 of the block."""

    description: Description
    signature: str
    layout: Layout
    checksum: int


class PreparedWeights:
    """Blocks of weights under a folder, by the identity of the checkpoint's file.

    Replicas of one node may share the folder: equal files give equal blocks.
    """

    def __init__(self, folder: Path | None) -> None:
        """Keep blocks in `folder`; None keeps nothing."""
        self._folder = folder
        self._recipes: dict[FileIdentity, Recipe] = {}

    def recipe(self, identity: FileIdentity) -> Recipe | None:
        """Return how to open this file's block, None when it was not kept."""
        return self._recipes.get(identity)

    def keep(
        self, identity: FileIdentity, description: Description, signature: str, weights: Weights
    ) -> None:
        """Write the block of weights that are still on the CPU; a full disk is no error."""
        if self._folder is None or identity in self._recipes:
            return
        data = _bytes_of(weights.block)
        path = self._path(self._folder, identity)
        partial = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError as error:
            logger.warning("prepared weights are not kept: %s", error.strerror)
            with suppress(OSError):
                partial.unlink()
            return
        checksum = zlib.crc32(data)
        self._recipes[identity] = Recipe(description, signature, weights.layout, checksum)

    def read(self, identity: FileIdentity, recipe: Recipe) -> torch.Tensor | None:
        """Return the block, None when its file is gone or is not what was written."""
        if self._folder is None:
            return None
        block = allocate(recipe.layout.nbytes)
        view = _bytes_of(block)
        try:
            with self._path(self._folder, identity).open("rb") as file:
                complete = file.readinto(view) == len(view) and not file.read(1)
        except OSError:
            complete = False
        if complete and zlib.crc32(view) == recipe.checksum:
            return block
        self._recipes.pop(identity, None)
        return None

    @staticmethod
    def _path(folder: Path, identity: FileIdentity) -> Path:
        name = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
        return folder / f"{name}.weights"


def _bytes_of(block: torch.Tensor) -> memoryview:
    array: Any = block.numpy()
    return memoryview(array)
