"""The deployment that holds a device: Ray Serve's entry into a replica.

It wires registry, loader, cache and engine together and keeps what Ray advertises true. What a
request does is in service.py, what is in memory in the cache.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import ray
from ray import serve

from serve_app.cache import POLICIES, CacheLimits, ModelCache
from serve_app.engines.devices import device_total_bytes, resolve_device, usable_cores
from serve_app.engines.factory import create_engines
from serve_app.engines.store import ArtifactStore
from serve_app.engines.streams import Streams, default_streams
from serve_app.errors import Failure, ServeAppError
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
from serve_app.replica.multiplex import MultiplexBridge
from serve_app.replica.observer import ReplicaObserver
from serve_app.replica.preparation import follow
from serve_app.replica.service import PredictService
from serve_app.settings import AppArgs, DetectorConfig, SettingsError
from serve_app.types import ModelKey, ModelRef, PredictRequest, PredictResult, ReplicaReport

logger = logging.getLogger(__name__)

PREPARED_FOLDER = "prepared"
"""Under cache_dir."""


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
        self._registry = AsyncRegistry(Registry.from_settings(args))
        cores = args.threads or usable_cores()
        self._streams = Streams(args.streams or default_streams(self._device, cores), cores)
        store = ArtifactStore(args.cache_dir / PREPARED_FOLDER, args.prepared_bytes)
        worker = WorkerSettings(
            self._device, args.precision, args.cpu_engine, store.folder, store.limit_bytes
        )
        self._preparer = Preparer(worker.command(), store)
        self._following: asyncio.Task[None] | None = None
        self._loader = Loader(
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
        self._bridge = MultiplexBridge(self, ModelSlot)
        self._metrics = Metrics()
        self._config = DetectorConfig()
        self._config_error: str | None = None
        self._configured = False
        self._preloading: asyncio.Task[None] | None = None
        self._preload_timeout_s = args.request_timeout_s
        self._cache: ModelCache[PreparedFile, LoadedModel] = ModelCache(
            self._loader,
            limits=CacheLimits(self._config.budget_bytes(self._device_bytes)),
            max_concurrent_loads=args.max_concurrent_loads,
            observer=ReplicaObserver(self._metrics, self._on_change),
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
                result = await self._service.predict(request)
        except ServeAppError as error:
            return error.to_failure()
        phases_s = {**result.phases_s, "total": time.monotonic() - started}
        self._metrics.answered(request.key.name, phases_s)
        return result

    async def load(self, key: ModelKey, timeout_s: float) -> Failure | None:
        """Make a model resident; None once it is."""
        try:
            await self._load(key, timeout_s)
        except ServeAppError as error:
            return error.to_failure()
        return None

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
        )

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Apply budget, cap, pins and preloads in place.

        Ray calls this before the replica is ready: then a wrong configuration keeps it from
        starting, and preloads are awaited. It calls this again on every change, and while it
        runs the replica gets no traffic, and an error would stop the replica: so then a wrong
        configuration is refused and reported, the one in force stays, and preloads run beside.
        """
        try:
            config = DetectorConfig.parse(user_config)
            pinned, wanted = await self._resolve(config)
            config.check_count(wanted)
            limits = CacheLimits(config.budget_bytes(self._device_bytes), config.max_models, pinned)
        except (SettingsError, ServeAppError) as error:
            if not self._configured:
                raise SettingsError(f"Detector user_config: {error}") from None
            logger.error("user_config refused, the one in force stays: %s", error)
            self._config_error = str(error)
            return
        self._config, self._config_error = config, None
        self._cache.reconfigure(limits, POLICIES[config.eviction_policy]())
        if self._following is None:
            self._following = asyncio.create_task(follow(self._registry, self._preparer))
        if self._preloading is not None:
            self._preloading.cancel()
        self._preloading = asyncio.create_task(self._preload(wanted))
        if not self._configured:
            await self._preloading
        self._configured = True

    async def check_health(self) -> None:
        """Be healthy as long as the event loop answers; a bad model is no reason to restart."""
        self._record_memory()

    async def __del__(self) -> None:
        """Ray calls this once when the replica stops: give everything back, in reverse order."""
        tasks = [task for task in (self._preloading, self._following) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._preparer.aclose()
        await self._service.aclose()  # before the cache: what waits in it holds leases
        await self._cache.aclose()
        await self._loader.aclose()
        await asyncio.to_thread(self._streams.close)

    async def _resolve(
        self, config: DetectorConfig
    ) -> tuple[frozenset[ModelKey], tuple[ModelKey, ...]]:
        """Return the pinned keys, and all keys to be loaded at once in the order written."""
        named: dict[str, list[ModelKey]] = {}
        for setting in ("pinned", "preload"):
            try:
                references = map(ModelRef.parse, getattr(config, setting))
                named[setting] = [await self._registry.resolve(ref) for ref in references]
            except ServeAppError as error:
                raise SettingsError(f"{setting}: {error.detail}") from None
        return frozenset(named["pinned"]), tuple(dict.fromkeys(named["pinned"] + named["preload"]))

    async def _preload(self, keys: tuple[ModelKey, ...]) -> None:
        """Load `keys`; one that cannot be loaded is reported and harms no other."""
        for key in keys:
            try:
                await self._load(key, self._preload_timeout_s)
            except ServeAppError as error:
                self._config_error = f"{key} was not loaded: {error.code}: {error.detail}"
                logger.error("preload of %s", self._config_error)

    async def _load(self, key: ModelKey, timeout_s: float) -> None:
        async with self._advertised(key):
            await self._cache.load(key, timeout_s=timeout_s)

    @asynccontextmanager
    async def _advertised(self, key: ModelKey) -> AsyncIterator[None]:
        """Tell the routers of `key` before its load begins, and take it back if none did."""
        await self.model_slot(str(key))
        try:
            yield
        except BaseException:
            self._on_change(self._cache.keys())
            raise

    def _on_change(self, keys: Collection[ModelKey]) -> None:
        self._bridge.follow({str(key) for key in keys})
        self._record_memory()

    def _record_memory(self) -> None:
        self._metrics.memory(
            resident=sum(model.state == "resident" for model in self._cache.snapshot()),
            used_bytes=self._cache.used_bytes,
            budget_bytes=self._cache.budget_bytes,
        )
