"""Fixtures of the engines' tests."""

from tests.support.exports import exported
from tests.support.fixtures import bus, checkpoints, one_core

__all__ = ["bus", "checkpoints", "exported", "one_core"]
