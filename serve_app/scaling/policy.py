"""What Ray Serve's controller calls to learn how many detectors there should be.

    autoscaling_config:
      policy: {policy_function: "serve_app.scaling.policy:WorkingSetPolicy"}

Ray pickles this module by value, makes one WorkingSetPolicy from `policy_kwargs` when the
application is deployed, and calls it ten times a second. Bounds, delays and factors of
autoscaling_config still apply to what it returns.
"""

import logging
import math
import os
import time
from typing import Any

import ray
from ray.serve.config import AutoscalingContext

from serve_app.scaling.decision import (
    REQUESTS,
    Decision,
    Fleet,
    Outgrown,
    ScalingRules,
    by_queue,
    decide,
)
from serve_app.scaling.placement import places
from serve_app.scaling.reports import read_reports
from serve_app.tuning import ONE_NODE

logger = logging.getLogger("ray.serve")  # the controller writes no other

NODES_AGE_S = 5.0
"""How old what is known of the cluster's nodes may be."""
DECIDE_EVERY_S = 0.5
"""Replicas report less often than Ray asks, and reading all their reports takes time."""
COMPLAIN_EVERY_S = 300.0


class WorkingSetPolicy:
    """Scales a deployment of detectors by its queues and by what its models need to stay."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - as the config file has them
        """Take `policy_kwargs`, see ScalingRules; wrong ones are logged and the defaults used.

        Raising would stop Ray's controller from deploying anything: `make serve` and
        `serve_app.scaling.check` refuse them before.
        """
        try:
            self.rules = ScalingRules.parse(kwargs)
        except (TypeError, ValueError) as error:
            logger.error("policy_kwargs of WorkingSetPolicy refused, defaults are used: %s", error)
            self.rules = ScalingRules()
        self._outgrown: Outgrown | None = None
        self._fleet = (-1, -1)
        self._fleet_since = -math.inf
        self._decided_at, self._decided = -math.inf, 0
        self._said = -1
        self._complained = -math.inf
        self._places: tuple[float, int] = (-math.inf, 0)

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of replicas, and no state: this object keeps its own."""
        try:
            return self._decide(ctx), {}
        except Exception as error:
            self._complain(error)
            return _by_queue_alone(ctx), {}

    def _decide(self, ctx: AutoscalingContext) -> int:
        if ctx.current_num_replicas == 0:
            # Replicas are starting, or there are none and no requests: with requests Ray decides
            # without asking.
            return ctx.target_num_replicas
        now = ctx.current_time if ctx.current_time is not None else time.time()
        same = (ctx.current_num_replicas, ctx.target_num_replicas) == self._fleet
        if same and 0 <= now - self._decided_at < DECIDE_EVERY_S:
            return self._decided
        fleet = self._observe(ctx, now)
        decision = decide(fleet, self.rules, self._outgrown)
        self._outgrown = decision.outgrown
        wanted = decision.replicas
        if wanted > fleet.target and (placeable := self._placeable(now)) is not None:
            wanted = max(fleet.target, min(wanted, placeable))
        self._say(ctx, fleet, decision, wanted)
        self._decided_at, self._decided = now, wanted
        return wanted

    def _observe(self, ctx: AutoscalingContext, now: float) -> Fleet:
        running, target = ctx.current_num_replicas, ctx.target_num_replicas
        if (running, target) != self._fleet:
            self._fleet, self._fleet_since = (running, target), now
        settled = running >= target and now - self._fleet_since >= self.rules.settle_s
        return Fleet(
            replicas=read_reports(ctx.raw_metrics),
            running=running,
            target=target,
            least=ctx.capacity_adjusted_min_replicas,
            most=ctx.capacity_adjusted_max_replicas,
            requests=ctx.total_num_requests,
            target_requests=_target_requests(ctx),
            settled=settled,
        )

    def _placeable(self, now: float) -> int | None:
        """Return how many replicas there are places for; None where nodes can be added."""
        fixed = self.rules.fixed_cluster
        if fixed is None:
            fixed = os.environ.get(ONE_NODE) == "1"
        if not fixed:
            return None
        looked, found = self._places
        if not 0 <= now - looked < NODES_AGE_S:
            found = places(ray.nodes())  # type: ignore[no-untyped-call]
            self._places = (now, found)
        return found

    def _say(self, ctx: AutoscalingContext, fleet: Fleet, decision: Decision, wanted: int) -> None:
        """Say once why more are wanted; Ray says when it is acted on, and why for requests."""
        if wanted != self._said and wanted > fleet.target and decision.reason != REQUESTS:
            logger.info(
                "%s: %d replicas wanted instead of %d, because of %s",
                ctx.deployment_name,
                wanted,
                fleet.target,
                decision.reason,
            )
        self._said = wanted

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_EVERY_S:
            self._complained = now
            logger.error(
                "WorkingSetPolicy failed and goes by queues alone: %s: %s",
                type(error).__name__,
                error,
            )


def _target_requests(ctx: AutoscalingContext) -> float:
    return float(ctx.config.get_target_ongoing_requests()) if ctx.config is not None else 0.0


def _by_queue_alone(ctx: AutoscalingContext) -> int:
    """Decide as Ray's own policy does; what has failed may fail again, so never raise."""
    try:
        fleet = Fleet(
            replicas=(),
            running=ctx.current_num_replicas,
            target=ctx.target_num_replicas,
            least=0,
            most=ctx.target_num_replicas,
            requests=ctx.total_num_requests,
            target_requests=_target_requests(ctx),
        )
        return by_queue(fleet) if fleet.running else fleet.target
    except Exception:
        return int(ctx.target_num_replicas)
