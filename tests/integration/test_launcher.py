"""`make serve`: it says why it cannot start, ends, and leaves nothing behind."""

import socket
from collections.abc import Mapping
from pathlib import Path

from tests.integration.server import (
    ROOT,
    Json,
    free_port,
    make_config,
    start,
    stop,
    wait_until,
)


def _failure(
    config: Json,
    folder: Path,
    *,
    address: str = "local",
    variables: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run the launcher until it ends by itself; return its status and last line."""
    process = start(config, folder, address, variables)
    try:
        status = process.wait(90.0)
    finally:
        left = stop(process)
    assert left == []
    return status, (folder / "log").read_text().strip().splitlines()[-1]


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    """The address is named, and nothing was started."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = make_config(ROOT / "models", listener.getsockname()[1])
        status, line = _failure(config, tmp_path)
    assert status == 2
    assert line.startswith("serve_app: cannot start: http_options.port: 127.0.0.1:")


def test_no_models_is_said_in_one_line(tmp_path: Path) -> None:
    """An empty repository is an error before anything is started."""
    status, line = _failure(make_config(tmp_path, free_port()), tmp_path)
    assert status == 2
    assert "args.repository: no model in" in line


def test_an_application_that_cannot_deploy_ends_the_command(tmp_path: Path) -> None:
    """What only a replica can find out is said too: here how much memory its device has."""
    user_config = {"memory_budget": "1024TiB"}
    config = make_config(ROOT / "models", free_port(), user_config=user_config)
    # Ray tries a replica three times otherwise, each in a process of its own.
    once = {"RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1"}
    status, line = _failure(config, tmp_path, variables=once)
    assert status == 1
    assert line.startswith("serve_app: cannot start: Detector user_config: memory_budget: ")
    assert "more than the device has" in line


def test_ctrl_c_during_the_start_leaves_no_process(tmp_path: Path) -> None:
    """Whenever the interrupt comes, nothing is left running."""
    process = start(make_config(ROOT / "models", free_port()), tmp_path)
    wait_until(lambda: "dashboard at" in (tmp_path / "log").read_text(), 60.0, "Ray's start")
    assert stop(process) == []
    assert process.returncode == 0
    assert (tmp_path / "log").read_text().strip().endswith("serve_app: stopped")


def test_a_cluster_that_cannot_be_joined_is_said_in_one_line(tmp_path: Path) -> None:
    """Ray's own errors end the command with an error, too."""
    config = make_config(ROOT / "models", free_port())
    status, line = _failure(config, tmp_path, address="nonsense://nowhere")
    assert status == 1
    assert line.startswith("serve_app: cannot start: ")
