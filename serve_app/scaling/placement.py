"""How many detectors a cluster has places for. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any


def places(nodes: Iterable[Mapping[str, Any]]) -> int:
    """Return how many detectors fit on `nodes`, as `ray.nodes()` lists them; at least 1.

    One for each GPU; where there is none, one for each node with a CPU: the engine of a detector
    uses all cores of its node, so a second one there would only be in its way.
    """
    resources = [node.get("Resources") or {} for node in nodes if node.get("Alive")]
    gpus = sum(int(one.get("GPU", 0)) for one in resources)
    return max(1, gpus or sum(one.get("CPU", 0) >= 1 for one in resources))
