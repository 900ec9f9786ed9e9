"""Fixtures that several test folders import into their conftest."""

import cv2
import numpy as np
import pytest
import torch

from serve_app.types import ImageArray
from tests.support.checkpoints import BUS, CheckpointFolder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFolder:
    """Random-weight checkpoints, made on first asking."""
    return CheckpointFolder(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def bus() -> ImageArray:
    """A photograph of 810 x 1080 pixels with people and a bus."""
    image = cv2.imread(str(BUS))
    assert image is not None
    return np.asarray(image, dtype=np.uint8)


@pytest.fixture(scope="session", autouse=True)
def one_core() -> None:
    """Small pictures are not worth a second core, and other work may hold it."""
    torch.set_num_threads(1)
