"""What a `user_config` means to one replica: which models it names, and which fall to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.errors import ServeAppError
from serve_app.fleet.pins import more_of
from serve_app.fleet.share import share_of
from serve_app.registry.live import AsyncRegistry
from serve_app.settings import DetectorConfig, SettingsError, Wanted
from serve_app.types import Copies, ModelKey, ModelRef


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """A checked configuration.

    budget_bytes: the memory budget on this device
    pinned: the wanted copies of all pinned models, in the order written
    pins, preloads: those of them that fall to this replica
    """

    config: DetectorConfig
    budget_bytes: int
    pinned: Mapping[str, Copies]
    pins: tuple[ModelKey, ...]
    preloads: tuple[ModelKey, ...]

    @property
    def share(self) -> tuple[str, ...]:
        """All that is to be resident here before the replica is ready."""
        return tuple(str(key) for key in dict.fromkeys((*self.pins, *self.preloads)))


async def understand(
    user_config: Mapping[str, Any],
    registry: AsyncRegistry,
    *,
    rank: int,
    world_size: int,
    device_bytes: int,
) -> ReplicaConfig:
    """Check `user_config` and resolve its references.

    Raises:
        SettingsError: it is wrong, names no model, or wants more than a replica may hold
    """
    config = DetectorConfig.parse(user_config)
    pinned = await _resolve(registry, "pinned", config.pinned)
    pins = share_of(pinned, rank, world_size)
    preloads = share_of(await _resolve(registry, "preload", config.preload), rank, world_size)
    config.check_count([*pins, *preloads])
    return ReplicaConfig(
        config=config,
        budget_bytes=config.budget_bytes(device_bytes),
        pinned={str(key): copies for key, copies in pinned.items()},
        pins=pins,
        preloads=preloads,
    )


async def _resolve(
    registry: AsyncRegistry, setting: str, entries: tuple[Wanted, ...]
) -> dict[ModelKey, Copies]:
    """Return the wanted copies of each model, in the order written."""
    wanted: dict[ModelKey, Copies] = {}
    for entry in entries:
        try:
            key = await registry.resolve(ModelRef.parse(entry.model))
        except ServeAppError as error:
            raise SettingsError(f"{setting}: {error.detail}") from None
        wanted[key] = more_of(entry.copies, wanted.get(key, 0))
    return wanted
