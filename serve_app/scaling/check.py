"""Checks an `autoscaling_config` of serve_config.yaml before Ray sees it; Ray accepts nonsense."""

import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serve_app.scaling.decision import ScalingRules

POLICY = "serve_app.scaling.policy:WorkingSetPolicy"
_POLICY_KEYS = ("policy_function", "policy_kwargs")


def check_autoscaling(values: Mapping[str, Any]) -> None:
    """Raise ValueError, in one line that says what to write, if `values` cannot be meant."""
    known = AutoscalingConfig.model_fields
    for key in values:
        if key not in known:
            raise ValueError(f"{key}: unknown key; known keys: {', '.join(known)}")
    _check_bounds(values)
    if "policy" in values:
        _check_policy(values["policy"])
    try:
        with warnings.catch_warnings():
            # Ray warns of metrics_interval_s, the only setting of it that acts, and of what is
            # refused below.
            warnings.simplefilter("ignore")
            config = AutoscalingConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {message}" if where else message) from None
    if config.look_back_period_s <= config.metrics_interval_s:
        raise ValueError(
            f"look_back_period_s: {config.look_back_period_s:g} is not more than "
            f"metrics_interval_s ({config.metrics_interval_s:g}), so nothing would be seen: write "
            f"look_back_period_s: {5 * config.metrics_interval_s:g}"
        )


def _check_bounds(values: Mapping[str, Any]) -> None:
    """Compare the numbers of replicas, before Ray says it without a hint at what to write."""
    fields = AutoscalingConfig.model_fields
    low, high, first = (
        values.get(f"{name}_replicas", fields[f"{name}_replicas"].default)
        for name in ("min", "max", "initial")
    )
    if not isinstance(low, int) or not isinstance(high, int):
        return  # Ray says it well
    if low > high:
        default = "" if "max_replicas" in values else ", the default"
        raise ValueError(
            f"min_replicas: {low} is more than max_replicas ({high}{default}): "
            f"write max_replicas: {low} or more"
        )
    if isinstance(first, int) and not low <= first <= high:
        raise ValueError(f"initial_replicas: {first}: write a number from {low} to {high}")


def _check_policy(policy: object) -> None:
    if not isinstance(policy, Mapping):
        raise ValueError(f"policy: write 'policy_function: {POLICY}' beneath it")
    for key in policy:
        if key not in _POLICY_KEYS:
            raise ValueError(f"policy.{key}: unknown key; known keys: {', '.join(_POLICY_KEYS)}")
    path, kwargs = policy.get("policy_function"), policy.get("policy_kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise ValueError("policy.policy_kwargs: expected entries of the form 'name: value'")
    if path is not None and str(path).replace(":", ".") == POLICY.replace(":", "."):
        try:
            ScalingRules.parse(kwargs)
        except ValueError as error:
            raise ValueError(f"policy.policy_kwargs.{error}") from None
    elif path is not None:
        _check_importable(str(path), policy)


def _check_importable(path: str, policy: Mapping[str, Any]) -> None:
    try:
        AutoscalingPolicy(**policy)  # type: ignore[no-untyped-call]
    except (ImportError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"policy.policy_function: {path!r} cannot be imported ({reason}): write {POLICY}"
        ) from None
