"""Start reading here: `build` turns the settings into the Ray Serve application.

client -> Ingress (limits, parse, reference to key) -> Detector (one per device)
       -> multiplexed slot -> lease from the cache (miss: fetch, verify, open, warm up)
       -> engine -> results -> response
"""

import os
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig, RequestRouterConfig

from serve_app.ingress.deployment import Ingress
from serve_app.replica.deployment import Detector
from serve_app.settings import AppArgs
from serve_app.tuning import ONE_NODE, behind_haproxy, detector_environment

ROLE_LABEL, DETECTOR_ROLE = "serve-app-role", "detector"
"""A label of nodes; cluster.yaml gives it to its GPU workers, deploy/rayservice.yaml to none."""

DETECTOR_ONGOING_REQUESTS = 64
"""Per detector replica: enough to keep the engine busy while models load."""
DETECTOR_QUEUED_REQUESTS = 256
"""For detectors, per ingress replica: beyond this our answer is 503 rather than a longer queue."""

# Behind HAProxy an ingress replica reads the body of a request that still waits for its turn into
# memory, before anything of ours runs. So no request should wait there: it begins at once, and our
# own limits (`max_inflight_bytes`, and the queue above) refuse it by its headers, or as it streams.
INGRESS_ONGOING_REQUESTS = 1024
"""Per ingress replica: far more than detectors take, so that the refusing is ours."""
INGRESS_QUEUED_REQUESTS = 64
"""Per ingress replica behind HAProxy: beyond this Serve itself answers 503."""
PROXY_QUEUED_REQUESTS = INGRESS_ONGOING_REQUESTS
"""Per proxy of Serve's own, where a request counts as queued until a replica has taken it: a small
number would refuse bursts that the ingress has room for."""

ROUTING: dict[str, Any] = {
    "request_router_class": "serve_app.routing.router:FleetRouter",
    "request_routing_stats_period_s": 0.5,
    # A fleet that is full everywhere is tried again after so long at most: short against the
    # seconds that a full queue takes, and each try asks some replicas how many requests they have.
    "max_backoff_s": 0.25,
}
"""Which replica a request goes to; `request_router_kwargs` would take fields of RoutingConfig."""

HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 10.0
"""Three checks in a row must fail, or not be answered, before Ray replaces a replica. Nothing of
ours blocks the event loop that answers, so a busy replica is never late by so much; one that finds
itself stuck or without its device does not wait for the third (replica/health.py)."""
INGRESS_HEALTH_CHECK_TIMEOUT_S = 30.0
"""Ray's default. An ingress takes its clients' connections with it and shares its cores with
detectors: one that is starved should not be ended, and HAProxy soon leaves out one that hangs."""
DRAIN_EXTRA_S = 15.0
"""Beyond the longest request: a replica that ends closes its models and threads then."""
DRAIN_LOOP_S = 0.5
"""How often a replica that ends looks whether its last request has been answered."""


def build(args: AppArgs) -> Application:
    """Build the application; Ray Serve calls this with `args` of serve_config.yaml."""
    args = args.model_copy(update={"repository": args.repository.resolve()})
    detector = serve.deployment(name="Detector")(Detector).options(
        **_placement(args),
        max_ongoing_requests=DETECTOR_ONGOING_REQUESTS,
        max_queued_requests=DETECTOR_QUEUED_REQUESTS,
        **_lifecycle(args),
        request_router_config=RequestRouterConfig(**ROUTING),
        # The ingress writes a line for each request already. What we log ourselves still appears.
        logging_config={"enable_access_log": False},
        # Without one Ray would not call reconfigure at the start, and take the first change for it.
        user_config={},
    )
    ingress = serve.deployment(name="Ingress")(Ingress).options(
        # It only parses and passes on; a machine of one core must hold it and a detector. Nodes
        # that are there for detectors alone come and go, so it keeps away from those so labelled.
        ray_actor_options={"num_cpus": 0, "label_selector": {ROLE_LABEL: f"!{DETECTOR_ROLE}"}},
        max_ongoing_requests=INGRESS_ONGOING_REQUESTS,
        max_queued_requests=(
            INGRESS_QUEUED_REQUESTS if behind_haproxy(os.environ) else PROXY_QUEUED_REQUESTS
        ),
        backpressure_config=BackpressureConfig(retry_after_s=1.0),
        # A new version starts before the old one stops: it needs no room, and clients always find
        # one. A detector may have no room beside the old one; requests wait for it.
        max_surge_percent=100,
        **_lifecycle(args, INGRESS_HEALTH_CHECK_TIMEOUT_S),
    )
    return ingress.bind(args, detector.bind(args))


def _lifecycle(args: AppArgs, check_timeout_s: float = HEALTH_CHECK_TIMEOUT_S) -> dict[str, Any]:
    """Return how replicas are checked, and how long one that is to end finishes what it holds."""
    return {
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": check_timeout_s,
        "graceful_shutdown_timeout_s": args.request_timeout_s + DRAIN_EXTRA_S,
        "graceful_shutdown_wait_loop_s": DRAIN_LOOP_S,
    }


def _placement(args: AppArgs) -> dict[str, Any]:
    """Say what a detector needs, and on a CPU that it has its node for itself.

    There its engine uses all cores, so a second one would only be in its way. On a single machine
    the autoscaling policy sees to that: a new version of the only replica may start at once, beside
    the old one that ends, and an operator who asks for two has them.
    """
    options: dict[str, Any] = {
        "ray_actor_options": {
            **_actor_options(args),
            "runtime_env": {"env_vars": detector_environment(os.environ)},
        }
    }
    if "num_gpus" not in options["ray_actor_options"] and os.environ.get(ONE_NODE) != "1":
        options["max_replicas_per_node"] = 1
    return options


def _actor_options(args: AppArgs) -> dict[str, float]:
    """Reserve a whole GPU for a replica where the cluster has one and the settings allow it."""
    wants_gpu = args.device == "cuda" or (args.device == "auto" and _cluster_has_gpu())
    return {"num_cpus": 1, "num_gpus": 1} if wants_gpu else {"num_cpus": 1}


def _cluster_has_gpu() -> bool:
    return bool(ray.cluster_resources().get("GPU", 0) >= 1)  # type: ignore[no-untyped-call]
