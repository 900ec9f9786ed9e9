"""Watches a deployment from beside `serve run`, which itself would wait for ever."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

POLL_INTERVAL_S = 0.5
PATIENCE_S = 30.0
REACH_PATIENCE_S = 10.0
_MAX_UNREADABLE = 60
_CONNECT_TIMEOUT_S = 2.0
_ERROR_LINE = re.compile(r"[\w.]+(?:Error|Exception): (.+)")


class Watcher(threading.Thread):
    """Waits until the applications run or one has failed; `failure` then says why."""

    def __init__(
        self,
        applications: Sequence[str],
        *,
        unreachable: Callable[[], str | None],
        on_running: Callable[[], None],
        on_failure: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """Watch `applications` by name; the callbacks are called in this thread.

        unreachable: says why clients cannot connect, None when they can; asked before `on_running`
        """
        super().__init__(name="deploy-watcher", daemon=True)
        self._applications = applications
        self._unreachable = unreachable
        self._on_running = on_running
        self._on_failure = on_failure
        self._say = say
        self._unreadable = 0
        self._stopped = threading.Event()
        self.failure: str | None = None

    def stop(self) -> None:
        """End the thread; to be called before Ray is shut down, which a poll would start anew."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Poll Serve's status until it is decided."""
        patient_until = time.monotonic() + PATIENCE_S
        while self.failure is None:
            if self._stopped.wait(POLL_INTERVAL_S):
                return
            states = self._states()
            failed = [s for s in states if s.status == ApplicationStatus.DEPLOY_FAILED]
            if failed:
                self.failure = reason(messages(failed[0]))
            elif len(states) == len(self._applications) and all(
                state.status == ApplicationStatus.RUNNING for state in states
            ):
                self._await_connection()
                return
            elif time.monotonic() > patient_until:
                patient_until += PATIENCE_S
                self._say("still starting: " + reason(m for s in states for m in messages(s)))
        self._on_failure()

    def _await_connection(self) -> None:
        """Tell that the applications run once clients can connect, and until then why not."""
        patient_until = time.monotonic() + REACH_PATIENCE_S
        while (wrong := self._unreachable()) is not None:
            if time.monotonic() > patient_until:
                patient_until += PATIENCE_S
                self._say(f"the applications run, but {wrong}")
            if self._stopped.wait(POLL_INTERVAL_S):
                return
        self._on_running()

    def _states(self) -> list[ApplicationStatusOverview]:
        """Return the applications' states; while Serve restarts it cannot be asked."""
        try:
            found = serve.status().applications
        except Exception as error:
            self._unreadable += 1
            if self._unreadable >= _MAX_UNREADABLE:
                self.failure = f"Serve's status cannot be read: {type(error).__name__}"
            return []
        self._unreadable = 0
        return [found[name] for name in self._applications if name in found]


def unreachable(host: str, port: int) -> str | None:
    """Return why nothing answers at an address; None when a connection is taken there."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S):
            return None
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        return (
            f"nothing answers at {host}:{port} ({why}): the log above says why; where another "
            "program has taken a port of HAProxy's meanwhile, stop this one and start it again"
        )


def messages(state: ApplicationStatusOverview) -> list[str]:
    """Return what Serve says of an application and its deployments."""
    return [state.message, *(deployment.message for deployment in state.deployments.values())]


def reason(said: Iterable[str]) -> str:
    """Return the line of a failed deployment's messages that says what was wrong.

    Serve's messages hold whole stack traces, the one of the cause last.
    """
    lines = [line.strip() for message in said for line in message.splitlines()]
    errors = [match[1] for line in lines if (match := _ERROR_LINE.fullmatch(line))]
    known = errors or [line for line in lines if line] or ["nothing was said; see the log above"]
    return known[-1]
