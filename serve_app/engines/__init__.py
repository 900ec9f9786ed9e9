"""What runs models: files in, answers out, on one device.

Importing this package settles how Ultralytics behaves in this process, before anything imports
it: nothing is installed or downloaded at run time, and a checkpoint is opened in restricted mode.
"""

import os
import tempfile
from pathlib import Path

_BEHAVIOUR = {
    "YOLO_AUTOINSTALL": "false",
    "YOLO_OFFLINE": "true",
    "YOLO_VERBOSE": "false",
}


def _config_folder() -> Path | None:
    """Return a writable folder for Ultralytics' settings when the home folder is not one."""
    existing = Path.home() / ".config"
    while not existing.exists():
        existing = existing.parent
    if os.access(existing, os.W_OK):
        return None
    return Path(tempfile.mkdtemp(prefix="serve_app-ultralytics-"))


def _settle_environment() -> None:
    for name, value in _BEHAVIOUR.items():
        os.environ.setdefault(name, value)
    # Not a default: unsafe loading is never wanted here, whatever the shell says.
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "1"
    if "YOLO_CONFIG_DIR" not in os.environ and (folder := _config_folder()) is not None:
        os.environ["YOLO_CONFIG_DIR"] = str(folder)


_settle_environment()
