"""What runs models: files in, answers out, on one device.

Importing this package settles how Ultralytics behaves in this process, before anything imports
it: nothing is installed or downloaded at run time, and a checkpoint is opened in restricted mode.
"""

import os
import tempfile
from pathlib import Path

_ASSUMED_OFFLINE = "SERVE_APP_ASSUMED_OFFLINE"
# Never wanted here, whatever the shell says: packages installed while serving, pickles run.
_FIXED = {"YOLO_AUTOINSTALL": "false", "ULTRALYTICS_SAFE_LOAD": "1"}


def _config_folder() -> Path | None:
    """Return a writable folder for Ultralytics' settings when the home folder is not one."""
    existing = Path.home() / ".config"
    while not existing.exists():
        existing = existing.parent
    if os.access(existing, os.W_OK):
        return None
    return Path(tempfile.mkdtemp(prefix="serve_app-ultralytics-"))


def downloads_are_forbidden() -> bool:
    """Return whether the operator set YOLO_OFFLINE, which is more than this package's default."""
    wish = os.environ.get("YOLO_OFFLINE", "").lower()
    return wish in {"1", "true", "yes", "on"} and _ASSUMED_OFFLINE not in os.environ


def _settle_environment() -> None:
    os.environ.update(_FIXED)
    os.environ.setdefault("YOLO_VERBOSE", "false")
    if "YOLO_OFFLINE" not in os.environ:
        # Marked in the environment, since child processes inherit both.
        os.environ.update({"YOLO_OFFLINE": "true", _ASSUMED_OFFLINE: "true"})
    if "YOLO_CONFIG_DIR" not in os.environ and (folder := _config_folder()) is not None:
        os.environ["YOLO_CONFIG_DIR"] = str(folder)


_settle_environment()
