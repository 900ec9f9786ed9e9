"""serve_app as a user runs it: writes a config and becomes `python -m serve_app CONFIG`.

python -m benchmarks.servers.ours --models FOLDER --port P [--room N] [--budget BYTES]
    [--precision auto|fp32|bf16|fp16] [--cache-dir FOLDER] [--max-wait SECONDS|none]
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

UNLIMITED = "60%"


def make_config(
    models: Path,
    port: int,
    *,
    room: int | None = None,
    budget: int | None = None,
    precision: str | None = None,
    cache_dir: Path | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return a Serve config for the models of `models`; None leaves a setting at its default.

    more: further `args` of the application, as they are
    """
    args = {
        "repository": str(models.resolve()),
        "precision": precision,
        "cache_dir": None if cache_dir is None else str(cache_dir.resolve()),
    }
    limits = {"memory_budget": UNLIMITED if budget is None else budget, "max_models": room}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "yolo",
                "import_path": "serve_app.app:build",
                "route_prefix": "/",
                "args": {name: value for name, value in args.items() if value is not None}
                | dict(more),
                "deployments": [
                    {"name": "Detector", "user_config": limits},
                    {"name": "Ingress"},
                ],
            }
        ],
    }


def _seconds(text: str) -> float | None:
    return None if text == "none" else float(text)


def main() -> None:
    """Become the launcher of serve_app."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--room", type=int)
    parser.add_argument("--budget", type=int, help="bytes; default 60 %% of the memory")
    parser.add_argument("--precision")
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--max-wait", type=_seconds, default=argparse.SUPPRESS)
    given = parser.parse_args()
    config = make_config(
        given.models,
        given.port,
        room=given.room,
        budget=given.budget,
        precision=given.precision,
        cache_dir=given.cache_dir,
        more={"max_wait_s": given.max_wait} if "max_wait" in given else {},
    )
    path = Path(tempfile.mkdtemp(prefix="benchmark_")) / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    os.execv(sys.executable, [sys.executable, "-m", "serve_app", str(path)])  # noqa: S606


if __name__ == "__main__":
    main()
