"""The scheduler is fair, loses nothing, keeps models and shapes apart, and respects deadlines."""

from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from serve_app.replica.scheduler import MAX_DEBTS, FairScheduler, Ticket, Turn

NEVER = float("inf")


def one_second(batch: int) -> float:
    """As long as a batch of any size takes."""
    return 1.0


def ticket(
    flow: str,
    work: int = 0,
    *,
    lane: str = "640x640",
    deadline: float = NEVER,
    max_batch: int = 1,
    expected_s: Callable[[int], float] = one_second,
) -> Ticket[int]:
    """Make a ticket."""
    return Ticket(work, flow, lane, deadline, max_batch, expected_s)


def take(scheduler: FairScheduler[int], now: float = 0.0) -> Turn[int]:
    """Take a batch where there must be one and nothing expires."""
    turn, expired = scheduler.take(now)
    assert turn is not None
    assert expired == []
    return turn


def run(scheduler: FairScheduler[int], turns: int) -> list[str]:
    """Run so many batches one after the other, each for as long as expected."""
    flows = []
    for _ in range(turns):
        turn = take(scheduler)
        flows.append(str(turn.flow))
        scheduler.done(turn, turn.charged_s)
    return flows


def works(turn: Turn[int]) -> list[int]:
    """Return what is in a batch."""
    return [one.work for one in turn.tickets]


def test_nothing_waits_at_first() -> None:
    """And nothing is taken."""
    assert FairScheduler[int]().take(0.0) == (None, [])


def test_a_rare_model_goes_before_a_hot_ones_queue() -> None:
    """Whatever its length."""
    scheduler = FairScheduler[int]()
    for work in range(60):
        scheduler.add(ticket("hot", work))
    run(scheduler, 5)
    running = take(scheduler)
    scheduler.add(ticket("rare"))
    assert take(scheduler).flow == "rare"
    scheduler.done(running, 1.0)


def test_a_newcomer_is_owed_nothing_for_the_time_before_it_came() -> None:
    """It shares with those who wait from now on."""
    scheduler = FairScheduler[int]()
    for work in range(100):
        scheduler.add(ticket("old", work))
    run(scheduler, 50)
    for work in range(100):
        scheduler.add(ticket("new", work))
    assert Counter(run(scheduler, 20)) == {"old": 10, "new": 10}


def test_a_slow_model_gets_fewer_turns() -> None:
    """Both wait all the time; the engine's seconds are shared, not its turns."""
    scheduler = FairScheduler[int]()
    for work in range(100):
        scheduler.add(ticket("n", work))
        scheduler.add(ticket("x", work, expected_s=lambda _: 20.0))
    counts = Counter(run(scheduler, 42))
    assert counts == {"n": 40, "x": 2}


def test_measured_seconds_count_not_expected_ones() -> None:
    """A model that nothing is known of is charged afterwards."""
    scheduler = FairScheduler[int]()
    for work in range(100):
        scheduler.add(ticket("known", work))
        scheduler.add(ticket("unknown", work, expected_s=lambda _: 0.0))
    counts: Counter[str] = Counter()
    for _ in range(22):
        turn = take(scheduler)
        counts[str(turn.flow)] += 1
        scheduler.done(turn, 1.0 if turn.flow == "known" else 10.0)
    assert counts == {"known": 20, "unknown": 2}


def test_a_model_that_asks_again_and_again_pays_too() -> None:
    """A closed loop of one slow request at a time never has a queue, but its use is remembered."""
    scheduler = FairScheduler[int]()
    for work in range(100):
        scheduler.add(ticket("n", work))
    counts: Counter[str] = Counter()
    scheduler.add(ticket("x", expected_s=lambda _: 20.0))
    for _ in range(42):
        turn = take(scheduler)
        counts[str(turn.flow)] += 1
        scheduler.done(turn, turn.charged_s)
        if turn.flow == "x":
            scheduler.add(ticket("x", expected_s=lambda _: 20.0))
    assert counts["n"] >= 39


def test_use_is_forgotten_when_nobody_waits() -> None:
    """Nobody has to wait for what was used while nobody else wanted it."""
    scheduler = FairScheduler[int]()
    for _ in range(100):
        scheduler.add(ticket("alone"))
        run(scheduler, 1)
    assert scheduler.remembered == 0
    scheduler.add(ticket("alone"))
    scheduler.add(ticket("other"))
    assert run(scheduler, 2) == ["alone", "other"]


def test_ten_thousand_models_leave_nothing_behind() -> None:
    """Neither in the end nor, beyond a bound, while another one keeps the engine busy."""
    scheduler = FairScheduler[int]()
    scheduler.add(ticket("busy"))
    most = 0
    for number in range(10_000):
        scheduler.add(ticket("busy"))
        scheduler.add(ticket(f"model-{number}", expected_s=lambda _: 1000.0))
        run(scheduler, 2)
        most = max(most, scheduler.remembered)
    assert MAX_DEBTS // 2 < most <= MAX_DEBTS + 2
    run(scheduler, len(scheduler))
    assert scheduler.remembered == 0


def test_a_batch_is_of_one_model_and_shape_in_order() -> None:
    """And of the profile's size at most; the shape of the oldest picture goes first."""
    scheduler = FairScheduler[int]()
    for work, lane in enumerate("aababaaa"):
        scheduler.add(ticket("m", work, lane=lane, max_batch=3))
    batches = []
    while len(scheduler):
        turn = take(scheduler)
        batches.append(works(turn))
        scheduler.done(turn, 1.0)
    assert batches == [[0, 1, 3], [2, 4], [5, 6, 7]]


def test_cancelled_tickets_cost_nothing() -> None:
    """They are dropped at dispatch, and their model keeps its turn."""
    scheduler = FairScheduler[int]()
    gone = [ticket("m", work) for work in range(50)]
    for one in gone:
        scheduler.add(one)
    scheduler.add(ticket("m", 50))
    scheduler.add(ticket("other", 51))
    for one in gone:
        scheduler.cancel(one)
    assert len(scheduler) == 2
    assert works(take(scheduler)) == [50]
    assert works(take(scheduler)) == [51]
    assert scheduler.take(0.0) == (None, [])


def test_a_shape_does_not_keep_the_place_of_a_cancelled_picture() -> None:
    """The oldest of those that are left goes first."""
    scheduler = FairScheduler[int]()
    gone = ticket("m", 0, lane="b")
    for one in (gone, ticket("m", 1, lane="a"), ticket("m", 2, lane="b")):
        scheduler.add(one)
    scheduler.cancel(gone)
    assert [works(take(scheduler)) for _ in range(2)] == [[1], [2]]


def test_what_would_be_late_is_handed_back() -> None:
    """Before any work is spent on it."""
    scheduler = FairScheduler[int]()
    late = ticket("m", 1, deadline=9.9)
    scheduler.add(late)
    scheduler.add(ticket("m", 2, deadline=10.0))
    turn, expired = scheduler.take(9.0)
    assert expired == [late]
    assert turn is not None
    assert works(turn) == [2]
    assert len(scheduler) == 0


def test_a_batch_is_not_grown_until_somebody_is_late() -> None:
    """Who has time goes in the next one."""
    scheduler = FairScheduler[int]()
    for work, deadline in enumerate((NEVER, 3.0, NEVER, NEVER)):
        scheduler.add(ticket("m", work, deadline=deadline, max_batch=8, expected_s=float))
    assert works(take(scheduler)) == [0, 1, 2]
    assert works(take(scheduler)) == [3]


@pytest.mark.parametrize("streams", [1, 2, 4])
@given(
    costs=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    batch=st.integers(1, 8),
)
@settings(max_examples=50, deadline=None)
def test_backlogged_models_share_the_engine(streams: int, costs: list[int], batch: int) -> None:
    """At any time no two models that wait are further apart than their batches of all streams."""
    scheduler = FairScheduler[int]()
    used: defaultdict[str, float] = defaultdict(float)
    for number, cost in enumerate(costs):
        for _ in range(60 * batch):
            scheduler.add(ticket(f"m{number}", max_batch=batch, expected_s=float(cost).__mul__))
    largest = [cost * batch for cost in costs]
    running: list[Turn[int]] = []
    for _ in range(60):
        if len(running) == streams:
            turn = running.pop(0)
            scheduler.done(turn, turn.charged_s)
        turn = take(scheduler)
        used[str(turn.flow)] += turn.charged_s
        running.append(turn)
        for one in range(len(costs)):
            for other in range(one):
                apart = abs(used[f"m{one}"] - used[f"m{other}"])
                assert apart <= largest[one] + largest[other]


class Queues(RuleBasedStateMachine):
    """Whatever happens in whatever order, every ticket comes to exactly one end."""

    tickets = Bundle("tickets")
    turns = Bundle("turns")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: FairScheduler[int] = FairScheduler()
        self.waiting: dict[int, Ticket[int]] = {}
        self.running = 0
        self.now = 0.0
        self.count = 0

    @rule(
        target=tickets,
        flow=st.sampled_from("abc"),
        lane=st.sampled_from("xy"),
        left=st.sampled_from([0.5, 2.0, 10.0, NEVER]),
        seconds=st.sampled_from([0.0, 0.1, 1.0]),
    )
    def add(self, flow: str, lane: str, left: float, seconds: float) -> Ticket[int]:
        """Queue one."""
        one = ticket(
            flow,
            self.count,
            lane=lane,
            deadline=self.now + left,
            max_batch=ord(flow) - ord("a") + 1,
            expected_s=lambda batch: seconds * batch,
        )
        self.count += 1
        self.waiting[one.work] = one
        self.scheduler.add(one)
        return one

    @rule(one=consumes(tickets))
    def cancel(self, one: Ticket[int]) -> None:
        """Drop one that waits."""
        if self.waiting.pop(one.work, None) is not None:
            self.scheduler.cancel(one)

    @rule(target=turns)
    def take(self) -> Turn[int] | None:
        """Take a batch, which must be sound."""
        turn, expired = self.scheduler.take(self.now)
        for one in expired:
            del self.waiting[one.work]
            assert self.now + one.expected_s(1) > one.deadline
        if turn is None:
            assert not self.waiting
            return None
        first = turn.tickets[0]
        assert {(one.flow, one.lane) for one in turn.tickets} == {(first.flow, first.lane)}
        assert len(turn.tickets) <= first.max_batch
        assert works(turn) == sorted(works(turn))
        for one in turn.tickets:
            del self.waiting[one.work]
            assert self.now + one.expected_s(1) <= one.deadline
        older = [w for w, o in self.waiting.items() if o.flow == first.flow and w < first.work]
        assert not older, "an older picture of this model was passed over"
        self.running += 1
        return turn

    @rule(turn=consumes(turns), seconds=st.sampled_from([0.0, 0.5, 3.0]))
    def done(self, turn: Turn[int] | None, seconds: float) -> None:
        """End a batch."""
        if turn is not None:
            self.scheduler.done(turn, seconds)
            self.running -= 1

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule()
    def drain(self) -> None:
        """End all that wait."""
        assert {one.work for one in self.scheduler.drain()} == set(self.waiting)
        self.waiting.clear()

    @invariant()
    def counted(self) -> None:
        """The length is that of the queues; an idle scheduler remembers nothing."""
        assert len(self.scheduler) == len(self.waiting)
        if not self.waiting:
            assert self.scheduler.take(self.now) == (None, [])


Queues.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestQueues = Queues.TestCase
