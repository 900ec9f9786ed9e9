"""What a `user_config` means to a replica of a certain rank."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from serve_app.registry.catalog import Registry
from serve_app.registry.folder import FolderScanner
from serve_app.registry.live import AsyncRegistry
from serve_app.replica.configuration import Preloads, ReplicaConfig, understand
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


async def test_a_model_that_is_gone_keeps_no_replica_from_starting(
    registry: AsyncRegistry, tmp_path: Path
) -> None:
    """It is left out and told; so is one that was never there, and a version."""
    user_config: dict[str, Any] = {
        "pinned": ["a", {"model": "b@1", "copies": 1}],
        "preload": ["nobody", "c"],
    }
    await _understand(registry, **user_config)
    for place in ("a", "b/1"):
        shutil.rmtree(tmp_path / place)
    started = AsyncRegistry(Registry(FolderScanner(tmp_path)))
    wanted = await _understand(started, **user_config)
    assert (wanted.pinned, wanted.share) == ({}, ("c@1",))
    settings = [problem.partition(":")[0] for problem in wanted.problems]
    assert settings == ["pinned", "pinned", "preload"]
    assert "no model 'a'" in wanted.problems[0]


async def test_an_autoscaled_replica_takes_no_pin_by_number(registry: AsyncRegistry) -> None:
    """Its preloads are those of one of two."""
    user_config: dict[str, Any] = {
        "pinned": ["d", {"model": "a", "copies": 2}],
        "preload": ["b", "c"],
    }
    wanted = await _understand(registry, 1, 1, **user_config)
    assert wanted.pins == (ModelKey("d", "1"),)
    assert wanted.pinned == {"d@1": None, "a@1": 2}
    assert wanted.preloads == (await _understand(registry, 1, 2, **user_config)).preloads


async def test_a_change_loads_only_what_it_newly_names(registry: AsyncRegistry) -> None:
    """What was evicted since is not loaded again, nor what falls here by another number."""
    a, b, c = (ModelKey(name, version) for name, version in (("a", "1"), ("b", "2"), ("c", "1")))
    preloads = Preloads()
    first = await _understand(registry, preload=["a", "b"])
    assert preloads.take(first) == (a, b)
    preloads.tried(a)
    more = await _understand(registry, memory_budget="50%", preload=["a", "b", "c"])
    assert preloads.take(more) == (b, c), "b has not had its turn yet"
    preloads.tried(b)
    preloads.tried(c)
    assert preloads.take(more) == ()
    assert preloads.take(await _understand(registry, preload=["b"])) == ()
    assert preloads.take(first) == (a,), "named anew"
    shares = [await _understand(registry, rank, 2, preload=["a", "b"]) for rank in (0, 1)]
    moved = Preloads()
    moved.take(shares[0])
    for key in shares[0].preloads:
        moved.tried(key)
    assert moved.take(shares[1]) == ()


async def test_the_greater_of_two_wishes_holds(registry: AsyncRegistry) -> None:
    """A model that is named twice, once by its version."""
    wanted = await _understand(registry, pinned=[{"model": "b", "copies": 2}, "b@2"])
    assert wanted.pinned == {"b@2": None}


async def test_what_is_wrong_is_named(registry: AsyncRegistry) -> None:
    """A name that can be none by its setting; more than a replica may hold; an unknown key."""
    with pytest.raises(SettingsError, match="^preload.0: model reference"):
        await _understand(registry, preload=["no/body"])
    with pytest.raises(SettingsError, match="max_models: 1, but pinned and preload name 2"):
        await _understand(registry, max_models=1, preload=["a", "b"])
    assert (await _understand(registry, 0, 2, max_models=1, preload=["a", "b"])).share
    with pytest.raises(SettingsError, match="memory_budget"):
        await _understand(registry, memory_budget="8GiB")
