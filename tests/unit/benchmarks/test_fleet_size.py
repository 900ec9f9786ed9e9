"""What the comparison of fleet sizes is made of."""

from pathlib import Path
from typing import Any

from benchmarks import fleet_size, fleet_size_parts
from benchmarks.fleet_size_report import compose
from benchmarks.machine import describe
from serve_app.registry.folder import FolderScanner


def test_the_repository_holds_so_many_models_in_one_file(tmp_path: Path) -> None:
    """Made twice it stays as it is."""
    root = tmp_path / "models"
    for _ in range(2):
        fleet_size.make_repository(root, 12)
    specs = list(FolderScanner(root).scan())
    assert sorted(spec.key.name for spec in specs) == [fleet_size.name_of(n) for n in range(12)]
    assert len({Path(spec.location).stat().st_ino for spec in specs}) == 1
    assert all(spec.card.task is not None for spec in specs)


def test_a_router_keeps_little_of_many_ids() -> None:
    """However many are asked for, in the order of megabytes; of few, next to nothing."""
    few, many = fleet_size_parts.router(160), fleet_size_parts.router(10_000)
    assert few["kept_bytes"] < 2**16
    assert many["kept_bytes"] < 8 * 2**20


def test_one_name_costs_far_less_than_all(tmp_path: Path) -> None:
    """Of 500 models, a tenth at the most; and a scan without cards less than one with them."""
    fleet_size.make_repository(tmp_path / "models", 500)
    found = fleet_size_parts.registry(tmp_path / "models")
    assert found["look_s"] < found["scan_cpu_s"] / 10
    assert found["without_cards_cpu_s"] < found["first_cpu_s"]
    assert found["kept_bytes"] < 500 * 8192


_REGISTRY = ("first_cpu_s", "without_cards_cpu_s", "scan_cpu_s", "look_s", "kept_bytes")


def result(count: int, factor: float) -> dict[str, Any]:
    """Return a result as it is measured."""
    seconds = (
        "ready",
        "first",
        "cold",
        "asked",
        "new_model",
        "slowest_new_model",
        "after_pause",
        "page",
    )
    names = (*seconds, "largest_page", "show", "unknown")
    memory = {"ingress": int(factor * 2**27), "detector": 2**30, "Ray": 2**30}
    return {
        "count": count,
        **{f"{name}_s": factor for name in names},
        "settled_s": 12.0,
        "hot_rate": 50.0,
        **{f"memory{after}": memory for after in ("", "_asked", "_unknown")},
        "idle_cores": {"ingress": 0.02, "detector": 0.0, "Ray": 0.1},
        "router": {"kept_bytes": 2048, "rank_s": 2e-6},
        "registry": dict.fromkeys(_REGISTRY, factor),
    }


def test_the_report_sets_the_sizes_side_by_side() -> None:
    """With the ratio of each figure, where there is one."""
    text = compose([result(10, 1.0), result(10_000, 1.5)], describe(), fleet_size.SCALE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "|  | 10 models | 10,000 models | ratio |"
    assert "| start of `python -m serve_app` until ready, s | 1.00 | 1.50 | 1.50 |" in rows
    assert "| `GET /v1/models/{ref}`, ms | 1000.0 | 1500.0 | 1.50 |" in rows
    assert "| share of a core while idle: detector, % | 0.0 | 0.0 | - |" in rows
    assert any("2,000 unknown names, MiB | 128 | 192 | 1.50" in row for row in rows)
