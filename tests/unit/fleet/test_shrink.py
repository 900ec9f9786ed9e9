"""How many replicas would do, as the keeper foresees it."""

from dataclasses import replace

from serve_app.fleet.shrink import REQUESTS_PER_REPLICA, replicas_needed_by
from serve_app.scaling.reports import PinnedModel, to_report
from serve_app.scaling.working_set import WorkingSetState
from serve_app.types import ReplicaReport, ResidentModel
from tests.unit.fleet.fakes import report


def _replica(name: str, *pinned: PinnedModel, **hot: int) -> ReplicaReport:
    state = WorkingSetState(bytes=sum(hot.values()), models=len(hot), hot=hot)
    return report(name, load=to_report(state, 100, pinned))


def test_idle_replicas_need_one() -> None:
    """There is always one to be kept, as far as this can say."""
    assert replicas_needed_by([]) == 1
    assert replicas_needed_by([_replica("r1"), _replica("r2"), report("r3")]) == 1


def test_the_working_set_counts_once() -> None:
    """Copies of a hot model are recognised; what does not fit into one needs two."""
    assert replicas_needed_by([_replica("r1", a=60), _replica("r2", a=60)]) == 1
    assert replicas_needed_by([_replica("r1", a=60), _replica("r2", b=60)]) == 2


def test_pins_need_as_many_as_their_copies() -> None:
    """Whatever their size."""
    three = PinnedModel("a", 1, 3)
    assert replicas_needed_by([_replica(name, three) for name in ("r1", "r2", "r3", "r4")]) == 3


def test_requests_in_progress_count() -> None:
    """A fleet that is busy is not about to shrink."""
    busy = ResidentModel("a", "resident", 1, 2 * REQUESTS_PER_REPLICA + 1, pinned=False, idle_s=0)
    assert replicas_needed_by([replace(_replica("r1"), models=(busy,)), _replica("r2")]) == 3
