"""Fixtures of the contract tests."""

from tests.support.fixtures import checkpoints, one_core

__all__ = ["checkpoints", "one_core"]
