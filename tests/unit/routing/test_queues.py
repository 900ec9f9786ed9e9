"""How many requests a router takes a replica to have: its own, and what others had there."""

from serve_app.routing.fleet_view import Sent
from tests.unit.routing.fleet import LIMIT, Fleet


def test_what_others_have_there_is_taken_from_what_was_told() -> None:
    """An answer tells of a queue as it was when the request came; one's own have gone on since."""
    fleet = Fleet("a", "b")
    fleet.models = {"a": {"m"}, "b": {"m"}}
    fleet.tell()
    first, *_, last = [fleet.view.sent("m", "a", str(number)) for number in range(50)]
    assert last.own == 50
    for number in range(50):
        fleet.view.completed(str(number))
    fleet.clock.now += 1.0
    fleet.view.accepted("a", 58, last)
    assert fleet.waiting("a") == 8, "the 50 have been answered"
    fleet.view.accepted("a", 40, first._replace(at=-1.0))
    assert fleet.waiting("a") == 8, "what is told later may be older"
    fleet.clock.now += 1.1
    assert fleet.waiting("a") == 0, "nobody tells more of a replica that is left out"


def test_others_alone_make_no_replica_full() -> None:
    """What they have is old news: it is asked before the model is loaded elsewhere."""
    fleet = Fleet("a", "b")
    fleet.models["a"] = {"m"}
    fleet.tell()
    fleet.view.accepted("a", LIMIT, Sent(1, 0.0))
    for number in range(10):
        fleet.view.sent("m", "a", str(number))
    assert fleet.waiting("a") == LIMIT - 1
    fleet.queues["a"] = LIMIT
    assert fleet.waiting("a") == LIMIT
