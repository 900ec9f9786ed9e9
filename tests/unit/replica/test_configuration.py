"""What a `user_config` means to a replica of a certain rank."""

from pathlib import Path

import pytest

from serve_app.registry.catalog import Registry
from serve_app.registry.folder import FolderScanner
from serve_app.registry.live import AsyncRegistry
from serve_app.replica.configuration import ReplicaConfig, understand
from serve_app.settings import SettingsError
from serve_app.types import ModelKey

GIB = 2**30


@pytest.fixture
def registry(tmp_path: Path) -> AsyncRegistry:
    """Return a registry of four models, one of them in two versions."""
    for place in ("a/1", "b/1", "b/2", "c/1", "d/1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model.pt").write_bytes(b"weights")
    return AsyncRegistry(Registry(FolderScanner(tmp_path)))


async def _understand(
    registry: AsyncRegistry, rank: int = 0, world_size: int = 1, **user_config: object
) -> ReplicaConfig:
    return await understand(
        user_config, registry, rank=rank, world_size=world_size, device_bytes=4 * GIB
    )


async def test_a_lone_replica_takes_all(registry: AsyncRegistry) -> None:
    """In the order written, each once; the budget is reckoned on the device."""
    wanted = await _understand(
        registry, memory_budget="50%", pinned=["b", {"model": "a", "copies": 3}], preload=["c", "b"]
    )
    assert wanted.budget_bytes == 2 * GIB
    assert wanted.pinned == {"b@2": None, "a@1": 3}
    assert wanted.pins == (ModelKey("b", "2"), ModelKey("a", "1"))
    assert wanted.preloads == (ModelKey("c", "1"), ModelKey("b", "2"))
    assert wanted.share == ("b@2", "a@1", "c@1")


async def test_replicas_share(registry: AsyncRegistry) -> None:
    """A bare pin is everybody's; the rest is divided, and all know of all pins."""
    shares = [
        await _understand(
            registry, rank, 2, pinned=["d", {"model": "a", "copies": 1}], preload=["b", "c"]
        )
        for rank in (0, 1)
    ]
    assert all(one.pinned == {"d@1": None, "a@1": 1} for one in shares)
    assert sorted(key for one in shares for key in one.share) == ["a@1", "b@2", "c@1", "d@1", "d@1"]
    assert sorted(len(one.preloads) for one in shares) == [1, 1]


async def test_the_greater_of_two_wishes_holds(registry: AsyncRegistry) -> None:
    """A model that is named twice, once by its version."""
    wanted = await _understand(registry, pinned=[{"model": "b", "copies": 2}, "b@2"])
    assert wanted.pinned == {"b@2": None}


async def test_what_is_wrong_is_named(registry: AsyncRegistry) -> None:
    """An unknown model by its setting; more than a replica may hold; an unknown key."""
    with pytest.raises(SettingsError, match="^preload: no model 'nobody'"):
        await _understand(registry, preload=["nobody"])
    with pytest.raises(SettingsError, match="max_models: 1, but pinned and preload name 2"):
        await _understand(registry, max_models=1, preload=["a", "b"])
    assert (await _understand(registry, 0, 2, max_models=1, preload=["a", "b"])).share
    with pytest.raises(SettingsError, match="memory_budget"):
        await _understand(registry, memory_budget="8GiB")
