"""Start reading here: `build` turns the settings into the Ray Serve application.

client -> Ingress (limits, parse, reference to key) -> Detector (one per device)
       -> multiplexed slot -> lease from the cache (miss: fetch, verify, open, warm up)
       -> engine -> results -> response
"""

import os

import ray
from ray import serve
from ray.serve import Application

from serve_app.ingress.deployment import Ingress
from serve_app.replica.deployment import Detector
from serve_app.settings import AppArgs
from serve_app.tuning import detector_environment

MAX_ONGOING_REQUESTS = 64
"""Per replica: enough to keep the engine busy while models load."""
MAX_QUEUED_REQUESTS = 256
"""Per ingress replica: beyond this the answer is 503 rather than a longer queue."""


def build(args: AppArgs) -> Application:
    """Build the application; Ray Serve calls this with `args` of serve_config.yaml."""
    args = args.model_copy(update={"repository": args.repository.resolve()})
    detector = serve.deployment(name="Detector")(Detector).options(
        ray_actor_options={
            **_actor_options(args),
            "runtime_env": {"env_vars": detector_environment(os.environ)},
        },
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        # Without one Ray would not call reconfigure at the start, and take the first change for it.
        user_config={},
    )
    ingress = serve.deployment(name="Ingress")(Ingress).options(
        # It only parses and passes on; a machine of one core must hold it and a detector.
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MAX_ONGOING_REQUESTS + MAX_QUEUED_REQUESTS,
    )
    return ingress.bind(args, detector.bind(args))


def _actor_options(args: AppArgs) -> dict[str, float]:
    """Reserve a whole GPU for a replica where the cluster has one and the settings allow it."""
    wants_gpu = args.device == "cuda" or (args.device == "auto" and _cluster_has_gpu())
    return {"num_cpus": 1, "num_gpus": 1} if wants_gpu else {"num_cpus": 1}


def _cluster_has_gpu() -> bool:
    return bool(ray.cluster_resources().get("GPU", 0) >= 1)  # type: ignore[no-untyped-call]
