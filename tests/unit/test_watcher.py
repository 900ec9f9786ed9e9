"""The watcher: running, failed, unreadable, stopped."""

import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import ApplicationStatus

from serve_app import watcher
from serve_app.watcher import Watcher, reason, unreachable


def _state(status: ApplicationStatus, message: str = "", deployment: str = "") -> SimpleNamespace:
    deployments = {"Detector": SimpleNamespace(message=deployment)}
    return SimpleNamespace(status=status, message=message, deployments=deployments)


def _watch(
    monkeypatch: pytest.MonkeyPatch, *states: object, wrong: Sequence[str] = ()
) -> tuple[Watcher, list[str]]:
    """Run a watcher in this thread over what Serve says, one poll after the other."""
    told: list[str] = []
    wrongs = iter(wrong)
    polls: Any = iter(states)

    def status() -> SimpleNamespace:
        state = next(polls)
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(applications={} if state is None else {"yolo": state})

    monkeypatch.setattr(watcher, "POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr("ray.serve.status", status)
    watched = Watcher(
        ["yolo"],
        unreachable=lambda: next(wrongs, None),
        on_running=lambda: told.append("running"),
        on_failure=lambda: told.append("failed"),
        say=told.append,
    )
    watched.run()
    return watched, told


def test_a_running_application_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before it is known and runs; a poll that fails is made again."""
    watched, told = _watch(
        monkeypatch,
        None,
        _state(ApplicationStatus.DEPLOYING),
        ConnectionError(),
        _state(ApplicationStatus.RUNNING),
    )
    assert told == ["running"]
    assert watched.failure is None


def test_a_server_that_nobody_reaches_is_not_told_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve calls it running before its port is bound: it is tried again, then said once."""
    running = _state(ApplicationStatus.RUNNING)
    _, told = _watch(monkeypatch, running, wrong=["no"] * 3)
    assert told == ["running"]
    monkeypatch.setattr(watcher, "REACH_PATIENCE_S", -1.0)
    _, told = _watch(monkeypatch, running, wrong=["nothing answers"] * 3)
    assert told == ["the applications run, but nothing answers", "running"]


def test_unreachable_tries_a_connection() -> None:
    """The address and the system's own word are said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        wrong = unreachable("127.0.0.1", port)
        assert f"nothing answers at 127.0.0.1:{port} (Connection refused)" in (wrong or "")
        listener.listen()
        assert unreachable("127.0.0.1", port) is None


def test_a_failed_deployment_is_told_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a whole stack trace the last error line counts."""
    trace = "Traceback (most recent call last):\nmod.FirstError: a\nmod.SomeError: the cause"
    failed = _state(ApplicationStatus.DEPLOY_FAILED, "Deploying app 'yolo' failed", trace)
    watched, told = _watch(monkeypatch, _state(ApplicationStatus.DEPLOYING), failed)
    assert told == ["failed"]
    assert watched.failure == "the cause"


def test_a_serve_that_cannot_be_asked_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command must not hang for ever."""
    watched, told = _watch(monkeypatch, *[ConnectionError()] * 100)
    assert told == ["failed"]
    assert watched.failure == "Serve's status cannot be read: ConnectionError"


def test_a_stopped_watcher_asks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll after Ray's shutdown would start a new Ray."""
    watched = Watcher(
        ["yolo"],
        unreachable=lambda: None,
        on_running=lambda: None,
        on_failure=lambda: None,
        say=print,
    )
    watched.stop()
    monkeypatch.setattr("ray.serve.status", lambda: pytest.fail("it asked"))
    watched.run()
    assert watched.failure is None


def test_reason_falls_back_to_what_there_is() -> None:
    """Without an error line the last line is told, without any line that nothing was said."""
    assert reason(["Deploying", ""]) == "Deploying"
    assert reason([]) == "nothing was said; see the log above"
