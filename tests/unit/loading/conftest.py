"""Fixtures of the loader's tests."""

from tests.support.fixtures import checkpoints

__all__ = ["checkpoints"]
