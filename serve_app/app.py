"""Start reading here: `build` turns the settings into the Ray Serve application.

client -> Ingress (limits, parse, reference to key) -> Detector (one per device)
       -> multiplexed slot -> lease from the cache (miss: fetch, verify, open, warm up)
       -> engine -> results -> response
"""

import os

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from serve_app.ingress.deployment import Ingress
from serve_app.replica.deployment import Detector
from serve_app.settings import AppArgs
from serve_app.tuning import behind_haproxy, detector_environment

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


def build(args: AppArgs) -> Application:
    """Build the application; Ray Serve calls this with `args` of serve_config.yaml."""
    args = args.model_copy(update={"repository": args.repository.resolve()})
    detector = serve.deployment(name="Detector")(Detector).options(
        ray_actor_options={
            **_actor_options(args),
            "runtime_env": {"env_vars": detector_environment(os.environ)},
        },
        max_ongoing_requests=DETECTOR_ONGOING_REQUESTS,
        max_queued_requests=DETECTOR_QUEUED_REQUESTS,
        # The ingress writes a line for each request already. What we log ourselves still appears.
        logging_config={"enable_access_log": False},
        # Without one Ray would not call reconfigure at the start, and take the first change for it.
        user_config={},
    )
    ingress = serve.deployment(name="Ingress")(Ingress).options(
        # It only parses and passes on; a machine of one core must hold it and a detector.
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=INGRESS_ONGOING_REQUESTS,
        max_queued_requests=(
            INGRESS_QUEUED_REQUESTS if behind_haproxy(os.environ) else PROXY_QUEUED_REQUESTS
        ),
        backpressure_config=BackpressureConfig(retry_after_s=1.0),
    )
    return ingress.bind(args, detector.bind(args))


def _actor_options(args: AppArgs) -> dict[str, float]:
    """Reserve a whole GPU for a replica where the cluster has one and the settings allow it."""
    wants_gpu = args.device == "cuda" or (args.device == "auto" and _cluster_has_gpu())
    return {"num_cpus": 1, "num_gpus": 1} if wants_gpu else {"num_cpus": 1}


def _cluster_has_gpu() -> bool:
    return bool(ray.cluster_resources().get("GPU", 0) >= 1)  # type: ignore[no-untyped-call]
