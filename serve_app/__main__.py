"""`python -m serve_app serve_config.yaml`: `serve run` that says why when it cannot start.

It is Ray's own `serve run`, with two things added: what can be known beforehand is checked
(preflight.py), and an application that fails to deploy ends the command instead of hanging it.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview
from ray.serve.scripts import cli

from serve_app import preflight
from serve_app.settings import SettingsError

POLL_INTERVAL_S = 0.5
PATIENCE_S = 30.0
_ERROR_LINE = re.compile(r"[\w.]+(?:Error|Exception): (.+)")
STRAGGLERS_TIMEOUT_S = 5.0


class Watcher(threading.Thread):
    """Waits until the applications run or one has failed; then tells, or stops the command."""

    def __init__(self, applications: Sequence[str], url: str, models: int) -> None:
        """Watch `applications`, to be reached at `url`."""
        super().__init__(name="deploy-watcher", daemon=True)
        self._applications = applications
        self._url = url
        self._models = models
        self.failure: str | None = None

    def run(self) -> None:
        """Poll Serve's status until it is decided."""
        patient_until = time.monotonic() + PATIENCE_S
        while True:
            time.sleep(POLL_INTERVAL_S)
            states = serve.status().applications
            watched = [states[name] for name in self._applications if name in states]
            for state in watched:
                if state.status == ApplicationStatus.DEPLOY_FAILED:
                    self.failure = reason(messages(state))
                    os.kill(os.getpid(), signal.SIGINT)
                    return
            if len(watched) == len(self._applications) and all(
                state.status == ApplicationStatus.RUNNING for state in watched
            ):
                say(f"{self._models} models at {self._url} (API reference: {self._url}/docs)")
                return
            if time.monotonic() > patient_until:
                patient_until += PATIENCE_S
                say("still starting: " + reason([m for s in watched for m in messages(s)]))


def messages(state: ApplicationStatusOverview) -> list[str]:
    """Return what Serve says of an application and its deployments."""
    return [state.message, *(deployment.message for deployment in state.deployments.values())]


def reason(said: Iterable[str]) -> str:
    """Return the line of a failed deployment's messages that says what was wrong.

    Serve's messages hold whole stack traces, the one of the cause last.
    """
    lines = [line.strip() for message in said for line in message.splitlines()]
    errors = [match[1] for line in lines if (match := _ERROR_LINE.fullmatch(line))]
    return (errors or [line for line in lines if line] or ["nothing was said; see the log above"])[
        -1
    ]


def say(text: str) -> None:
    """Write one line for the person at the terminal."""
    sys.stderr.write(f"serve_app: {text}\n")
    sys.stderr.flush()


def end_ray() -> None:
    """Stop Ray and wait for every process that this one started; end those that hang."""
    started = psutil.Process().children(recursive=True)
    ray.shutdown()
    for end in (psutil.Process.terminate, psutil.Process.kill):
        _, left = psutil.wait_procs(started, timeout=STRAGGLERS_TIMEOUT_S)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)


def main(arguments: Sequence[str]) -> int:
    """Run the application of a config file until it is interrupted; return the exit status."""
    path = Path(arguments[0] if arguments else "serve_config.yaml")
    try:
        config = preflight.load_config(path)
        models = preflight.check_models(config)
        host, port = preflight.address(config)
        preflight.check_port(host, port)
    except SettingsError as error:
        say(f"cannot start: {error}")
        return 2
    watcher = Watcher(preflight.names(config["applications"]), f"http://{host}:{port}", models)
    failure = None
    try:
        ray.init(namespace="serve")
        # After ray.init, which sets its own; a shell's background job starts with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        preflight.check_device(config, resources.get("GPU", 0.0))
        watcher.start()
        cli.main(["run", str(path)], standalone_mode=False)
    except SettingsError as error:
        failure = str(error)
    except (KeyboardInterrupt, SystemExit):
        failure = watcher.failure
    finally:
        end_ray()
    say("stopped" if failure is None else f"cannot start: {failure}")
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
