"""Where log lines go: in a replica, into Ray Serve's own files and console."""

import logging


def join_serve_logs() -> None:
    """Send what this package logs wherever Serve sends its own lines; once in each replica."""
    ours, serves = logging.getLogger("serve_app"), logging.getLogger("ray.serve")
    ours.handlers = serves.handlers
    ours.setLevel(serves.getEffectiveLevel())
    ours.propagate = False
