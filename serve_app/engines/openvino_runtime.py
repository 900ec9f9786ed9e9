"""OpenVINO, without the reports that its converter would send over the network.

It sends them with a package of their own, and does without where that cannot be imported.
"""

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # cannot be imported

import openvino  # noqa: E402 - it looks for that package at once

__all__ = ["openvino"]
