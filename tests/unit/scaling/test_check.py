"""An autoscaling_config that cannot be meant is refused with what to write."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.app import DETECTOR_ONGOING_REQUESTS, DETECTOR_QUEUED_REQUESTS
from serve_app.scaling.check import POLICY, check_autoscaling

ROOT = Path(__file__).parents[3]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_replica": 1}, "min_replica: unknown key; known keys: min_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "write max_replicas: 3 or more"),
        ({"min_replicas": 3}, r"max_replicas \(1, the default\): write max_replicas: 3"),
        ({"max_replicas": 2, "initial_replicas": 5}, "initial_replicas: 5: write a number from 1"),
        ({"min_replicas": -1}, "min_replicas: "),
        ({"max_replicas": "many"}, "max_replicas: "),
        ({"look_back_period_s": 2, "metrics_interval_s": 2}, "write look_back_period_s: 10"),
        ({"policy": "x"}, "policy: write 'policy_function: "),
        ({"policy": None}, "policy: write 'policy_function: "),
        ({"policy": {"function": "x"}}, "policy.function: unknown key"),
        ({"policy": {"policy_function": "no.such:Thing"}}, f"cannot be imported .*write {POLICY}"),
        ({"policy": {"policy_function": "os.path:no"}}, "policy.policy_function: 'os.path:no'"),
        (
            {"policy": {"policy_function": POLICY, "policy_kwargs": {"margn": 1}}},
            "policy.policy_kwargs.margn: unknown key",
        ),
        ({"policy": {"policy_function": POLICY, "policy_kwargs": 3}}, "policy.policy_kwargs: "),
    ],
)
def test_nonsense_is_refused(values: dict[str, Any], message: str) -> None:
    """In one line."""
    with pytest.raises(ValueError, match=message) as caught:
        check_autoscaling(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"min_replicas": 0, "max_replicas": 3},
        {"policy": {"policy_function": POLICY.replace(":", "."), "policy_kwargs": {"margin": 0.5}}},
        {"policy": {"policy_function": POLICY}},
        {"policy": {}},
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_can_be_meant_passes(values: dict[str, Any]) -> None:
    """Without a warning."""
    check_autoscaling({**values, "metrics_interval_s": 1})


def test_one_detectors_queue_does_not_scale_the_shipped_ingress() -> None:
    """What waits for detectors is no work of the ingress, and each one more lets more wait."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    (ingress,) = (
        one for one in config["applications"][0]["deployments"] if one["name"] == "Ingress"
    )
    target = ingress["autoscaling_config"]["target_ongoing_requests"]
    assert target > DETECTOR_ONGOING_REQUESTS + DETECTOR_QUEUED_REQUESTS
