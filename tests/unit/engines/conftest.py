"""Fixtures of the engines' tests."""

import pytest
import torch

from tests.support.fixtures import bus, checkpoints

__all__ = ["bus", "checkpoints"]


@pytest.fixture(scope="session", autouse=True)
def _one_core() -> None:
    """Small pictures are not worth a second core, and other work may hold it."""
    torch.set_num_threads(1)
