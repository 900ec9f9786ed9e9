"""What a `user_config` means to one replica: which models it names, and which fall to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.errors import ServeAppError
from serve_app.fleet.pins import more_of
from serve_app.fleet.share import pins_of, share_of
from serve_app.registry.live import AsyncRegistry
from serve_app.settings import DetectorConfig, Wanted
from serve_app.types import Copies, ModelKey, ModelRef


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """A checked configuration.

    budget_bytes: the memory budget on this device
    pinned: the wanted copies of all pinned models, in the order written
    named: all models to preload
    pins, preloads: those of both that fall to this replica
    problems: why models that are named are left out, a text each
    """

    config: DetectorConfig
    budget_bytes: int
    pinned: Mapping[str, Copies]
    named: frozenset[ModelKey]
    pins: tuple[ModelKey, ...]
    preloads: tuple[ModelKey, ...]
    problems: tuple[str, ...] = ()

    @property
    def share(self) -> tuple[str, ...]:
        """All that is to be resident here before the replica is ready."""
        return tuple(str(key) for key in dict.fromkeys((*self.pins, *self.preloads)))


class Preloads:
    """Which preloads have had their turn here, so that no change loads again what was evicted."""

    def __init__(self) -> None:
        """Begin before the first configuration."""
        self._named: frozenset[ModelKey] = frozenset()
        self._waiting: set[ModelKey] = set()

    def take(self, config: ReplicaConfig) -> tuple[ModelKey, ...]:
        """Return what is to be loaded now: what is newly named, and what is still to have a turn.

        What was named before has had its chance here or elsewhere: a replica that is running is
        no longer what its preloads were for.
        """
        new = [key for key in config.preloads if key not in self._named or key in self._waiting]
        self._named, self._waiting = config.named, set(new)
        return tuple(new)

    def tried(self, key: ModelKey) -> None:
        """It was loaded or could not be."""
        self._waiting.discard(key)


async def understand(
    user_config: Mapping[str, Any],
    registry: AsyncRegistry,
    *,
    rank: int,
    world_size: int,
    device_bytes: int,
) -> ReplicaConfig:
    """Check `user_config` and resolve its references.

    A model that is not there is left out: models are removed while a fleet runs, and that must not
    keep a replica from starting in the place of another.

    Raises:
        SettingsError: it is wrong, or wants more than a replica may hold
    """
    config = DetectorConfig.parse(user_config)
    problems: list[str] = []
    pinned = await _resolve(registry, "pinned", config.pinned, problems)
    preload = await _resolve(registry, "preload", config.preload, problems)
    pins = pins_of(pinned, rank, world_size)
    preloads = share_of(preload, rank, world_size)
    config.check_count([*pins, *preloads])
    return ReplicaConfig(
        config=config,
        budget_bytes=config.budget_bytes(device_bytes),
        pinned={str(key): copies for key, copies in pinned.items()},
        named=frozenset(preload),
        pins=pins,
        preloads=preloads,
        problems=tuple(problems),
    )


async def _resolve(
    registry: AsyncRegistry, setting: str, entries: tuple[Wanted, ...], problems: list[str]
) -> dict[ModelKey, Copies]:
    """Return the wanted copies of each model, in the order written; add to `problems`."""
    wanted: dict[ModelKey, Copies] = {}
    for entry in entries:
        try:
            key = await registry.resolve(ModelRef.parse(entry.model))
        except ServeAppError as error:
            problems.append(f"{setting}: {error.detail}")
            continue
        wanted[key] = more_of(entry.copies, wanted.get(key, 0))
    return wanted
