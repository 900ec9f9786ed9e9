"""Every metric reaches Ray's exporter, under the name that docs/metrics.md gives."""

import os
from pathlib import Path

import httpx

from serve_app.metrics import ALL
from tests.integration.server import Server, wait_until


def test_every_metric_is_exported(server: Server, scenes: dict[str, bytes]) -> None:
    """After a load, a hit, a failure, an eviction and a regret each metric has a series."""
    assert server.predict("codes-n", scenes["codes-1"]).status_code == 200
    assert server.predict("codes-n", scenes["codes-1"]).status_code == 200
    assert server.predict("corrupt", scenes["codes-1"]).status_code == 424
    assert server.client.post("/v1/models/codes-n/unload").status_code == 200
    server.reconfigure(memory_budget="1GiB", max_models=1)
    wait_until(lambda: server.replica()["max_models"] == 1, what="the new limit")
    for model in ("codes-n", "components-n", "codes-n"):
        assert server.predict(model, scenes["codes-1"]).status_code == 200
    server.reset()

    names = {f"ray_{m.name}{'_total' if m.kind == 'counter' else ''}" for m in ALL}
    root = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"  # noqa: S108 (Ray's own)
    (session,) = root.glob(f"session_*_{server.process.pid}")
    (port_file,) = session.glob("metrics_export_port_*")
    url = f"http://127.0.0.1:{port_file.read_text()}/metrics"

    def missing() -> set[str]:
        text = httpx.get(url).text
        return {
            name for name in names if f"\n{name}{{" not in text and f"{name}_count{{" not in text
        }

    wait_until(lambda: not missing(), 30.0, "every metric in the exporter")
    assert "ray_serve_registered_multiplexed_model_id{" not in httpx.get(url).text
