"""`python -m serve_app serve_config.yaml`: `serve run` that says why when it cannot start.

It is Ray's own `serve run`, with three things added: what can be known beforehand is checked
(preflight.py), Ray is started in an environment that makes requests cheap (tuning.py), and an
application that fails to deploy ends the command instead of hanging it (watcher.py).
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
import ray
from ray.serve.scripts import cli

from serve_app import preflight, tuning
from serve_app.settings import SettingsError
from serve_app.watcher import Watcher, unreachable

STRAGGLERS_TIMEOUT_S = 5.0


def main(arguments: Sequence[str]) -> int:
    """Run the application of a config file until it is interrupted; return the exit status."""
    try:
        # A shell's background job begins with SIGINT ignored.
        take_signals(interrupt)
        return serve(Path(arguments[0] if arguments else "serve_config.yaml"))
    except KeyboardInterrupt:  # before Ray was started; `haproxy -v` may be there
        take_signals(signal.SIG_IGN)
        kill_started()
        return conclude(None)


def serve(path: Path) -> int:
    """Check the config, choose the environment, run; an interrupt raises KeyboardInterrupt."""
    try:
        config = preflight.load_config(path)
        models = preflight.check_models(config)
        host, port = preflight.address(config)
        preflight.check_port(host, port)
    except SettingsError as error:
        say(f"cannot start: {error}")
        return 2
    url = f"http://{host}:{port}"
    watcher = Watcher(
        preflight.names(config["applications"]),
        unreachable=lambda: unreachable(host, port),
        on_running=lambda: say(f"{models} models at {url} (API reference: {url}/docs)"),
        on_failure=lambda: os.kill(os.getpid(), signal.SIGINT),
        say=say,
    )
    for warning in preflight.warnings(config):
        say(f"warning: {warning}")
    folder = tuning.make_folder()
    try:
        tune(config, folder)
        return conclude(run(path, config, watcher, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(path: Path, config: Mapping[str, Any], watcher: Watcher, folder: Path) -> str | None:
    """Start Ray, deploy and wait; return why it failed, None when it was interrupted."""
    interrupted = threading.Event()
    failure: str | None = "Serve ended unexpectedly; see the log above"
    try:
        start_ray(watcher, interrupted, folder)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        preflight.check_device(config, resources.get("GPU", 0.0))
        watcher.start()
        cli.main(["run", str(path)], standalone_mode=False)
    except KeyboardInterrupt:
        failure = watcher.failure
    except SystemExit:  # `serve run` ends every way with it
        if interrupted.is_set():
            failure = watcher.failure
    except Exception as error:
        failure = " ".join(str(error).split()) or type(error).__name__
    finally:
        end_ray(watcher)
    return failure


def conclude(failure: str | None) -> int:
    """Say how it ended and return the exit status; no failure means that it was interrupted."""
    say("stopped" if failure is None else f"cannot start: {failure}")
    return 0 if failure is None else 1


def tune(config: Mapping[str, Any], folder: Path) -> None:
    """Set the environment that Ray is started in; a cluster that runs already keeps its own."""
    if os.environ.get("RAY_ADDRESS") not in (None, "", "local"):
        say("RAY_ADDRESS: how requests travel is up to that cluster's own environment")
        return
    host, port = preflight.address(config)
    front = tuning.Front(host, preflight.speaks_tls(config), tuning.haproxy_runs(os.environ))
    if reason := tuning.why_not_haproxy(os.environ, front):
        say(f"requests take Serve's slower default proxy: {reason}")
    free_port = tuning.port_picker(taken=[port])
    os.environ.update(tuning.environment(os.environ, front, folder, free_port))
    os.environ.setdefault(tuning.ONE_NODE, "1")


def start_ray(watcher: Watcher, interrupted: threading.Event, folder: Path) -> None:
    """Start Ray, or join the cluster that RAY_ADDRESS names, and take over the signals."""
    serve_run: Any = cli.commands["run"].callback

    def on_signal(_: int, frame: FrameType | None) -> None:
        interrupted.set()
        if frame is not None and frame.f_code is serve_run.__code__:
            raise KeyboardInterrupt  # `serve run` waits in its loop: it will shut down in order
        abandon(watcher, folder)

    # Ray sets handlers of its own: so both before and after.
    take_signals(on_signal)
    # Never whatever cluster happens to run here: deploying replaces what others serve on it.
    ray.init(address=os.environ.get("RAY_ADDRESS") or "local", namespace="serve")
    take_signals(on_signal)


def take_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Have `handler` called by whatever interrupts this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def interrupt(_: int, __: FrameType | None) -> NoReturn:
    """Unwind what runs; for as long as that is Python and not Ray's native code."""
    raise KeyboardInterrupt


def abandon(watcher: Watcher, folder: Path) -> None:
    """Kill what this process started and end: amid Ray's native code an exception would crash."""
    kill_started()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(conclude(watcher.failure))


def kill_started() -> None:
    """Kill every process that this one started, and wait for their end."""
    stopped: set[psutil.Process] = set()
    # Stopped first: one that still ran could start another while we look.
    while new := set(psutil.Process().children(recursive=True)) - stopped:
        for process in new:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        stopped |= new
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stopped, timeout=STRAGGLERS_TIMEOUT_S)


def end_ray(watcher: Watcher) -> None:
    """Stop Ray and wait for every process that this one started; end those that hang."""
    take_signals(signal.SIG_IGN)  # once more would leave processes behind
    watcher.stop()
    started = psutil.Process().children(recursive=True)
    ray.shutdown()
    for end in (psutil.Process.terminate, psutil.Process.kill):
        _, left = psutil.wait_procs(started, timeout=STRAGGLERS_TIMEOUT_S)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)


def say(text: str) -> None:
    """Write one line for the person at the terminal."""
    sys.stderr.write(f"serve_app: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
