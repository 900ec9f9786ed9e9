"""The fleet on a real autoscaler: it wakes, grows with its working set, and goes."""

from pathlib import Path

from benchmarks.autoscaling import deployed, grow, leave, wake
from benchmarks.autoscaling_parts import Outcome, Plan, Traffic
from benchmarks.fake_cluster import wait_until

PLAN = Plan(
    models=8, room=6.0, max_replicas=3, window_s=5.0, measure_s=5.0, settle_s=3.0, down_s=2.0
)


def test_a_working_set_larger_than_a_replica_brings_another_one(tmp_path: Path) -> None:
    """There is never a queue: what says that the cache is too small are models asked for again."""
    outcome = Outcome()
    with deployed(PLAN, tmp_path) as (cluster, application):
        assert application.replicas() == cluster.workers() == 0
        wake(application)
        assert application.replicas() == 1
        # The dashboard, which is asked, learns of a node a little later than Serve.
        wait_until(lambda: cluster.workers() == 1, 10.0, "the node of that replica")
        with Traffic(application.url, PLAN.models, PLAN.clients) as traffic:
            grow(PLAN, cluster, application, traffic, outcome)
        assert outcome.replicas >= 2
        assert outcome.workers >= 2
        assert outcome.before.failed == 0
        assert outcome.before.per_100 > 10, (
            "that is why it grew; the benchmark shows what it brings"
        )
        leave(PLAN, cluster, application, outcome)
