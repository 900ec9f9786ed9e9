"""What a router and a registry take for many models: in process, no cluster."""

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve_app.registry.catalog import Registry
from serve_app.registry.folder import FolderScanner
from serve_app.routing.fleet_view import FleetView, ReplicaState
from serve_app.routing.stats import RoutingStats

REPLICAS = 8
RESIDENT = 20
REQUESTS = 10_000
_LOOKS = 100
_BUDGET_BYTES = 1 << 30


def router(models: int) -> dict[str, Any]:
    """Rank and complete requests for `models` ids in turn.

    Returns:
        kept_bytes: by which the router's state has grown; rank_s: the median of a decision
    """
    view = FleetView()
    view.update([_state(number, models) for number in range(REPLICAS)])
    _ask(view, models, 100)
    tracemalloc.start()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    _ask(view, models, REQUESTS)
    gc.collect()
    kept_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"kept_bytes": kept_bytes, "rank_s": statistics.median(_ask(view, models, REQUESTS))}


def registry(repository: Path) -> dict[str, Any]:
    """Scan a repository.

    Returns:
        first_cpu_s: of the first scan; without_cards_cpu_s: where no card is read; scan_cpu_s: of a
        further scan; look_s: one name alone, median; kept_bytes: of all models with their cards
    """
    plain = Registry(FolderScanner(repository, cards=False))
    found = {"without_cards_cpu_s": _cpu_s(plain.refresh)}
    del plain
    gc.collect()
    known = Registry(FolderScanner(repository))
    found["first_cpu_s"] = _cpu_s(known.refresh)
    found["scan_cpu_s"] = _cpu_s(known.refresh)
    names = [spec.key.name for spec in known.snapshot.specs][:_LOOKS]
    looks = []
    for name in names:
        start = time.perf_counter()
        known.look(name)
        looks.append(time.perf_counter() - start)
    found["look_s"] = statistics.median(looks)
    tracemalloc.start()
    kept = Registry(FolderScanner(repository))
    kept.refresh()
    gc.collect()
    found["kept_bytes"] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return found


def _cpu_s(act: Callable[[], None]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


def _state(number: int, models: int) -> ReplicaState:
    stats = RoutingStats.from_wire(
        {"budget_bytes": _BUDGET_BYTES, "free_bytes": 0, "request_s": 0.02, "load_s": 0.05}
    )
    held = frozenset(f"m{(number * RESIDENT + i) % models:05d}@1" for i in range(RESIDENT))
    return ReplicaState(f"replica-{number}", held, stats, 64)


def _ask(view: FleetView, models: int, requests: int) -> list[float]:
    """Let `requests` requests come and go; return the seconds of each decision."""
    took = []
    for number in range(requests):
        model, request = f"m{number % models:05d}@1", f"r{number}"
        start = time.perf_counter()
        ranked = view.rank(model, lambda _: 0)
        took.append(time.perf_counter() - start)
        view.sent(model, ranked[0][0], request)
        view.completed(request)
    return took
