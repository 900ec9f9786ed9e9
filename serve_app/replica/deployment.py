"""The deployment that holds a device: Ray Serve's entry into a replica.

It wires registry, loader, cache and engine together and keeps what Ray advertises true. What a
request does is in service.py, what is in memory in the cache.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ReplicaRank

from serve_app.cache import POLICIES, CacheLimits, ModelCache
from serve_app.engines.devices import device_total_bytes, resolve_device, usable_cores
from serve_app.engines.factory import create_engines
from serve_app.engines.store import ArtifactStore
from serve_app.engines.streams import Streams, default_streams
from serve_app.errors import Failure, ServeAppError
from serve_app.fleet.holder import Holder
from serve_app.fleet.plan import Orders, gives_way_after_s
from serve_app.loading.loader import LoadedModel, Loader, PreparedFile
from serve_app.loading.prepare_worker import WorkerSettings
from serve_app.loading.preparer import Preparer
from serve_app.loading.sources.folder import FolderSource
from serve_app.loading.sources.ultralytics import UltralyticsSource
from serve_app.logs import join_serve_logs
from serve_app.metrics import Metrics
from serve_app.registry import folder, official
from serve_app.registry.catalog import Registry
from serve_app.registry.live import AsyncRegistry
from serve_app.replica.autoscaling_stats import AutoscalingStats
from serve_app.replica.configuration import Preloads, ReplicaConfig, understand
from serve_app.replica.health import Health
from serve_app.replica.multiplex import MultiplexBridge
from serve_app.replica.observer import ReplicaObserver
from serve_app.replica.preparation import follow
from serve_app.replica.routing_stats import RoutingMeter
from serve_app.replica.service import PredictService
from serve_app.settings import AppArgs, DetectorConfig, SettingsError
from serve_app.types import ModelKey, PredictRequest, PredictResult, ReplicaReport

logger = logging.getLogger(__name__)

PREPARED_FOLDER = "prepared"
"""Under cache_dir."""
LOAD_AHEAD_TIMEOUT_S = 600.0
"""For pins, preloads and second copies: nobody waits for them but a replica that is to be ready."""


class ModelSlot:
    """What Ray's wrapper holds for an advertised id; the model itself is the cache's."""

    __slots__ = ()


class Detector:
    """Serves every model of the registry on one device, as many in memory as the budget allows."""

    def __init__(self, args: AppArgs) -> None:
        """Open the device; models are loaded when they are asked for."""
        join_serve_logs()
        self._replica_id = serve.get_replica_context().replica_tag
        self._node_id = ray.get_runtime_context().get_node_id()
        self._device = resolve_device(args.device)
        self._device_bytes = device_total_bytes(self._device)
        registry = Registry.from_settings(args, cards=False)
        self._registry = AsyncRegistry(registry)
        cores = args.threads or usable_cores()
        self._streams = Streams(args.streams or default_streams(self._device, cores), cores)
        self._health = Health(self._streams.watch, stuck_after_s=args.stuck_after_s)
        store = ArtifactStore(args.cache_dir / PREPARED_FOLDER, args.prepared_bytes)
        worker = WorkerSettings(
            self._device, args.precision, args.cpu_engine, store.folder, store.limit_bytes
        )
        self._preparer = Preparer(worker.command(), store)
        self._following: asyncio.Task[None] | None = None
        self._routing = RoutingMeter(self._streams.count, self._preparer)
        self._loader = self._make_loader(args, cores, store)
        self._bridge = MultiplexBridge(self, ModelSlot)
        self._metrics = Metrics()
        self._config = DetectorConfig()
        self._scaling = AutoscalingStats(self._metrics, self._config.working_set_window_s)
        self._config_error: str | None = None
        self._configured = False
        self._preloads = Preloads()
        self._preloading: asyncio.Task[None] | None = None
        self._limits = CacheLimits(self._config.budget_bytes(self._device_bytes))
        self._share: tuple[str, ...] = ()
        self._holder = Holder(
            self._replica_id,
            apply=self._pin,
            load=lambda key: self._load(ModelKey.parse(key), LOAD_AHEAD_TIMEOUT_S),
            load_spare=self._load_spare,
        )
        self._cache: ModelCache[PreparedFile, LoadedModel] = ModelCache(
            self._loader,
            limits=self._limits,
            max_concurrent_loads=args.max_concurrent_loads,
            file_of=registry.file_of,
            look=lambda key: self._registry.look_soon(key.name),
            observer=ReplicaObserver(
                self._metrics, self._on_change, self._scaling, self._health.saw
            ),
        )
        self._service = PredictService(
            self._cache, self._streams, max_image_pixels=args.max_image_pixels
        )

    @serve.multiplexed(max_num_models_per_replica=-1)  # type: ignore[untyped-decorator]
    async def model_slot(self, key: str) -> ModelSlot:
        """Advertise `key` to the routers; never awaits, so Ray's lock is never contended."""
        return ModelSlot()

    async def predict(self, request: PredictRequest) -> PredictResult | Failure:
        """Answer one request; a failure comes back as a value (see serve_app.errors)."""
        started = time.monotonic()
        try:
            async with self._advertised(request.key):
                result = await self._health.run(self._service.predict(request))
        except ServeAppError as error:
            return error.to_failure()
        phases_s = {**result.phases_s, "total": time.monotonic() - started}
        self._metrics.answered(request.key.name, phases_s)
        self._routing.answered(result)
        return result

    async def load(self, key: ModelKey, timeout_s: float) -> str | Failure:
        """Make a model resident; return this replica's id once it is."""
        try:
            await self._load(key, timeout_s, at_once=True)
        except ServeAppError as error:
            return error.to_failure()
        return self._replica_id

    async def load_on(
        self, key: ModelKey, replica_ids: Collection[str], timeout_s: float
    ) -> tuple[str, Failure | None] | None:
        """Make a model resident if this replica is named; None if it is not."""
        if self._replica_id not in replica_ids:
            return None
        answer = await self.load(key, timeout_s)
        return self._replica_id, answer if isinstance(answer, Failure) else None

    async def order(self, orders: Orders) -> None:
        """Pin what the orders name for this replica; its loads run beside."""
        self._holder.take(orders)

    async def unload(self, key: ModelKey, timeout_s: float) -> bool | Failure:
        """Release a model; False when it was not in memory."""
        try:
            return await self._cache.unload(key, timeout_s=timeout_s)
        except ServeAppError as error:
            return error.to_failure()

    async def report(self) -> ReplicaReport:
        """Say what this replica is and holds."""
        return ReplicaReport(
            replica_id=self._replica_id,
            pid=os.getpid(),
            node_id=self._node_id,
            device=self._device,
            budget_bytes=self._cache.budget_bytes,
            used_bytes=self._cache.used_bytes,
            max_models=self._config.max_models,
            models=self._cache.snapshot(),
            advertised=tuple(sorted(self._bridge.advertised)),
            config_error=self._config_error,
            share=self._share,
            pinned=tuple(sorted(self._holder.pinned)),
            second_copies=tuple(sorted(self._holder.second_copies)),
            pin_errors=self._holder.errors,
            configured=self._holder.configured,
            pins=self._holder.table.pins,
            spare_copies_after_s=self._config.spare_copies_after_s,
            working_set_window_s=self._config.working_set_window_s,
            load=await self.record_autoscaling_stats(),
            set_aside=self._cache.set_aside(),
        )

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell the autoscaler what this replica holds and lacks; see serve_app.scaling.policy."""
        return self._scaling.report(
            self._cache.snapshot(),
            used_bytes=self._cache.used_bytes,
            budget_bytes=self._cache.budget_bytes,
            max_models=self._config.max_models,
            wanted=self._holder.table.wanted(self._holder.configured),
            second=self._holder.second_copies,
        )

    async def record_routing_stats(self) -> dict[str, Any]:
        """Say what routers should know; Ray asks every half second and passes changes on."""
        await self._routing.refresh()
        return self._routing.stats(
            budget_bytes=self._cache.budget_bytes,
            used_bytes=self._cache.used_bytes,
            max_models=self._config.max_models,
            advertised=self._bridge.advertised,
            models=self._cache.snapshot(),
            parked=self._loader.parked(),
            late_s=self._streams.watch.late_s(),
        ).to_wire()

    async def reconfigure(self, user_config: Mapping[str, Any], rank: ReplicaRank) -> None:
        """Apply budget, cap, and this replica's share of pins and new preloads in place.

        Ray calls this before the replica is ready: then a wrong configuration keeps it from
        starting, and preloads are awaited. It calls this again on every change, and while it
        runs the replica gets no traffic, and an error would stop the replica: so then a wrong
        configuration is refused and reported, the one in force stays, and preloads run beside.
        A model that is not there is left out and reported, at a start as later.
        """
        try:
            wanted = await understand(
                user_config,
                self._registry,
                rank=rank.rank,
                world_size=serve.get_replica_context().world_size or 1,
                device_bytes=self._device_bytes,
            )
        except (SettingsError, ServeAppError) as error:
            if not self._configured:
                raise SettingsError(f"Detector user_config: {error}") from None
            logger.error("user_config refused, the one in force stays: %s", error)
            self._config_error = str(error)
            return
        self._apply(wanted)
        preloading = self._restart_preloads(wanted)
        if not self._configured:
            await preloading
        self._configured = True

    async def check_health(self) -> None:
        """Raise when the engine is stuck or the device has failed; never for a bad model."""
        self._health.check()
        try:
            self._record_memory()
            self._metrics.set_aside(len(self._cache.set_aside()))
        except Exception:  # what cannot be counted harms no request
            logger.exception("the metrics of memory could not be recorded")

    async def __del__(self) -> None:
        """Ray calls this once when the replica stops: give everything back, in reverse order."""
        tasks = [task for task in (self._preloading, self._following) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._holder.aclose()
        await self._preparer.aclose()
        await self._service.aclose()  # before the cache: what waits in it holds leases
        await self._cache.aclose()
        await self._loader.aclose()
        await asyncio.to_thread(self._streams.close)

    def _make_loader(self, args: AppArgs, cores: int, store: ArtifactStore) -> Loader:
        """Bring sources, engines and streams together."""
        return Loader(
            self._registry.current_spec,
            {folder.SOURCE: FolderSource(), official.SOURCE: UltralyticsSource(args.cache_dir)},
            create_engines(
                self._device,
                threads=cores,
                streams=self._streams.count,
                precision=args.precision,
                cpu_engine=args.cpu_engine,
                store=store,
                parked_bytes=args.parked_bytes,
            ),
            self._streams,
            loader_threads=args.max_concurrent_loads,
            opened_plainly=self._preparer.opened,
        )

    def _apply(self, wanted: ReplicaConfig) -> None:
        """Put a configuration in force, but for its preloads."""
        config = self._config = wanted.config
        self._config_error = None
        for problem in wanted.problems:
            self._complain(problem)
        self._scaling.configure(config.working_set_window_s)
        self._share = wanted.share
        self._holder.configure(wanted.pinned, map(str, wanted.pins))
        self._limits = replace(
            self._limits, budget_bytes=wanted.budget_bytes, max_models=config.max_models
        )
        self._cache.reconfigure(self._limits, POLICIES[config.eviction_policy]())
        if self._following is None:
            self._following = asyncio.create_task(follow(self._registry, self._preparer))

    def _restart_preloads(self, wanted: ReplicaConfig) -> asyncio.Task[None]:
        """Begin with what is to be preloaded now; what was in progress ends."""
        if self._preloading is not None:
            self._preloading.cancel()
        self._preloading = asyncio.create_task(self._preload(self._preloads.take(wanted)))
        return self._preloading

    async def _preload(self, keys: tuple[ModelKey, ...]) -> None:
        """Load `keys`, after the pins; one that cannot be loaded is reported and harms no other.

        At the start none takes the room of another: one that does not fit beside them is reported.
        """
        await self._holder.tried()
        evicts_after_s = 0.0 if self._configured else math.inf
        for key in keys:
            try:
                await self._load(key, LOAD_AHEAD_TIMEOUT_S, evicts_after_s=evicts_after_s)
            except ServeAppError as error:
                self._complain(f"preload: {key} was not loaded: {error.code}: {error.detail}")
            except Exception as error:  # a defect: it must not keep the replica from starting
                logger.exception("the preload of %s failed unexpectedly", key)
                self._complain(f"preload: {key} was not loaded: {type(error).__name__}: {error}")
            self._preloads.tried(key)

    def _complain(self, problem: str) -> None:
        """Report what of the configuration could not be done; the rest is."""
        logger.error("user_config: %s", problem)
        known = f"{self._config_error}; " if self._config_error else ""
        self._config_error = known + problem

    def _pin(self, keys: frozenset[str]) -> None:
        self._limits = replace(self._limits, pinned=frozenset(map(ModelKey.parse, keys)))
        self._cache.reconfigure(self._limits)

    async def _load(
        self,
        key: ModelKey,
        timeout_s: float,
        *,
        at_once: bool = False,
        evicts_after_s: float = 0.0,
    ) -> None:
        async with self._advertised(key):
            loading = self._cache.load(
                key, timeout_s=timeout_s, at_once=at_once, evicts_after_s=evicts_after_s
            )
            await self._health.run(loading)

    async def _load_spare(self, key: str) -> None:
        """Load a second copy, at the price of nothing that is asked for."""
        idle_s = gives_way_after_s(self._config.working_set_window_s)
        await self._load(ModelKey.parse(key), LOAD_AHEAD_TIMEOUT_S, evicts_after_s=idle_s)

    @asynccontextmanager
    async def _advertised(self, key: ModelKey) -> AsyncIterator[None]:
        """Tell the routers of `key` before its load begins, and take it back if none did."""
        await self.model_slot(str(key))
        self._bridge.attach()
        try:
            yield
        except BaseException as error:
            self._health.saw(error)
            self._on_change(self._cache.keys())
            raise

    def _on_change(self, keys: Collection[ModelKey]) -> None:
        self._bridge.follow({str(key) for key in keys})
        self._record_memory()

    def _record_memory(self) -> None:
        models = self._cache.snapshot()
        self._scaling.sized(models)  # while those that leave are still there
        self._metrics.memory(
            resident=[
                ModelKey.parse(model.key).name for model in models if model.state == "resident"
            ],
            used_bytes=self._cache.used_bytes,
            budget_bytes=self._cache.budget_bytes,
        )
