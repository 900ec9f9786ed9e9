"""The bound by time over minutes of virtual time: who is let in waits so long, and not in vain."""

import random

import pytest

from tests.unit.ingress.overload_sim import Asked, Detectors, steadily

MAX_WAIT_S = 3.0


def at_random(per_s: float, since: float, until: float) -> list[float]:
    """Return times of a Poisson process, always the same."""
    drawn = random.Random(7)  # noqa: S311
    times, now = [], since + drawn.expovariate(per_s)
    while now < until:
        times.append(now)
        now += drawn.expovariate(per_s)
    return times


def longest_s(answered: list[Asked]) -> float:
    """Return the longest wait of requests that have all been answered."""
    assert answered
    return max(asked.waited_s for asked in answered)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("per_s", [4.0, 30.0, 90.0])
def test_under_steady_overload_waits_are_bounded_and_nothing_idles(
    per_s: float, times: int, batch: int
) -> None:
    """Whatever the detectors can do, and whether they answer one by one or in batches."""
    batch = min(batch, int(per_s / 2))
    detectors = Detectors(MAX_WAIT_S, per_s=per_s, batch=batch)
    detectors.ask(at_random(times * per_s, 0, 60))
    detectors.run(70)
    settled = detectors.accepted(15, 60)
    assert longest_s(settled) < 1.5 * MAX_WAIT_S
    assert len(settled) > 0.9 * per_s * 45
    assert len(detectors.accepted()) > 0.9 * per_s * 60
    retries = [asked.retry_after_s or 0.0 for asked in detectors.refused(15, 60)]
    assert retries
    assert MAX_WAIT_S <= min(retries) <= max(retries) < 1.5 * MAX_WAIT_S


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("per_s", [20.0, 30.0, 90.0])
@pytest.mark.parametrize("ingresses", [2, 4])
def test_several_ingresses_share_the_detectors(ingresses: int, per_s: float, times: int) -> None:
    """In order, one gets its answers in a row while another gets none for seconds."""
    detectors = Detectors(MAX_WAIT_S, per_s=per_s, ingresses=ingresses, replicas=1)
    detectors.ask(at_random(times * per_s, 0, 120))
    detectors.run(130)
    settled = detectors.accepted(30, 120)
    assert longest_s(settled) < 1.5 * MAX_WAIT_S
    assert len(settled) > 0.95 * per_s * 90


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize(("ingresses", "per_s"), [(2, 20.0), (2, 30.0), (4, 30.0)])
def test_several_ingresses_whose_calls_wait_in_no_order(
    ingresses: int, per_s: float, times: int
) -> None:
    """Beyond those that the detector holds; as with one ingress, a few are unlucky."""
    detectors = Detectors(MAX_WAIT_S, per_s=per_s, ingresses=ingresses, replicas=1, shuffled=True)
    detectors.ask(at_random(times * per_s, 0, 120))
    detectors.run(150)
    waits = sorted(asked.waited_s for asked in detectors.accepted(30, 120))
    assert waits[len(waits) // 2] < 1.2 * MAX_WAIT_S
    assert waits[int(len(waits) * 0.95)] < 2 * MAX_WAIT_S


def test_a_load_of_all_detectors_leaves_the_bound_as_it_was() -> None:
    """Of five seconds, under overload: who comes meanwhile or then is not let in for longer."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.ask(at_random(90, 0, 60))
    detectors.load("hot", 30, 35)
    detectors.run(70)
    assert longest_s(detectors.accepted(35, 60)) < 1.5 * MAX_WAIT_S
    assert len([a for a in detectors.accepted() if 35 <= (a.answered_at or 0) < 45]) > 0.95 * 300


def test_without_the_bound_they_wait_for_the_whole_queue() -> None:
    """What this is good for: a control."""
    detectors = Detectors(None)
    detectors.ask(at_random(90, 0, 60))
    detectors.run(80)
    assert longest_s(detectors.accepted(15, 60)) > 10
    assert any(asked.by_number for asked in detectors.refused())


@pytest.mark.parametrize("models", [2, 100, 10**6])
def test_many_models_are_bounded_as_one(models: int) -> None:
    """Also where no model is ever asked for twice, so that each is heard of only as it goes."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.ask(at_random(90, 0, 60), lambda number: f"model-{number % models}")
    detectors.run(70)
    assert longest_s(detectors.accepted(5, 60)) < 1.5 * MAX_WAIT_S
    assert len(detectors.accepted()) > 0.9 * 30 * 60
    assert detectors.backlogs[0].models_in_progress == 0


def test_a_capacity_that_drops_by_half_is_followed() -> None:
    """Within some seconds; those who came before wait twice as long as they should."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.ask(at_random(90, 0, 60))
    detectors.at(20, lambda: setattr(detectors, "per_s", 15.0))
    detectors.run(70)
    assert longest_s(detectors.accepted(10, 20)) < 2.2 * MAX_WAIT_S
    assert longest_s(detectors.accepted(25, 60)) < 1.5 * MAX_WAIT_S
    assert longest_s(detectors.accepted(40, 60)) < 1.1 * MAX_WAIT_S


def test_a_capacity_that_doubles_is_used() -> None:
    """A second replica has come."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.ask(at_random(120, 0, 60))
    detectors.at(20, lambda: setattr(detectors, "per_s", 60.0))
    detectors.run(70)
    assert len(detectors.accepted(25, 60)) > 0.95 * 60 * 35
    assert longest_s(detectors.accepted()) < 1.5 * MAX_WAIT_S


def test_after_a_first_load_a_burst_is_let_in() -> None:
    """The seconds of the load say nothing of how fast the answers come."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.load("hot", 0, 5)
    detectors.ask([*steadily(4, 0, 5), *at_random(60, 5, 6)])
    detectors.run(20)
    assert detectors.refused() == []
    assert longest_s(detectors.accepted(5)) < MAX_WAIT_S


@pytest.mark.parametrize("hot_per_s", [1.0, 10.0, 20.0])
def test_calls_that_wait_for_a_load_are_in_nobodys_way(hot_per_s: float) -> None:
    """Seventy of them, and a light load on a model that is there."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.load("slow", 1, 30)
    detectors.ask(steadily(70, 2, 3), "slow")
    detectors.ask(at_random(hot_per_s, 0, 30))
    detectors.run(40)
    assert detectors.refused() == []
    assert longest_s([a for a in detectors.accepted(0, 28) if a.model == "hot"]) < 1.0


def test_beside_a_load_the_bound_holds() -> None:
    """The loaded model's calls come on top once it is there, and are then waited for."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.load("slow", 1, 25)
    detectors.ask(steadily(70, 2, 3), "slow")
    detectors.ask(at_random(90, 0, 60))
    detectors.run(70)
    hot = [asked for asked in detectors.accepted(8, 60) if asked.model == "hot"]
    assert longest_s([asked for asked in hot if asked.at < 21]) < 1.5 * MAX_WAIT_S
    assert longest_s([asked for asked in hot if asked.at >= 25]) < 1.5 * MAX_WAIT_S
    assert longest_s(hot) < MAX_WAIT_S + 70 / 30 + 1
    assert len([asked for asked in hot if asked.at < 21]) > 0.9 * 30 * 13


def test_beside_many_calls_that_wait_for_a_load_nothing_idles() -> None:
    """Two hundred of them would take more than the bound, if they waited for the detectors."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.load("slow", 1, 25)
    detectors.ask(at_random(40, 0, 25))
    detectors.ask([2.0] * 200, "slow")
    detectors.run(40)
    assert len([a for a in detectors.accepted() if a.model == "slow"]) > 0
    hot = [a for a in detectors.asked if a.model == "hot" and 10 <= (a.answered_at or 0) < 24]
    assert len(hot) > 0.9 * 30 * 14


@pytest.mark.parametrize("within_s", [0.0, 0.1, 1.0])
def test_one_client_does_not_set_the_measure_for_a_burst(within_s: float) -> None:
    """It got 30 answers a second at best, each of which it waited for."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.ask_in_turn(100)
    detectors.run(4)
    detectors.ask([4 + number * within_s / 60 for number in range(60)])
    detectors.run(10)
    assert len(detectors.accepted()) == 160
    assert detectors.refused() == []


@pytest.mark.parametrize("models", [1, 20])
@pytest.mark.parametrize(("per_s", "seconds"), [(20, 3), (20, 20), (100, 4)])
def test_calls_that_a_stuck_replica_keeps_are_in_nobodys_way(
    per_s: int, seconds: int, models: int
) -> None:
    """The other one can answer more than what is asked for: nothing is refused."""
    detectors = Detectors(MAX_WAIT_S, per_s=1.5 * per_s)
    detectors.ask(at_random(per_s, 0, 60), lambda number: f"model-{number % models}")
    detectors.at(10, lambda: setattr(detectors, "stuck", []))
    detectors.at(10 + seconds, lambda: setattr(detectors, "stuck", None))
    detectors.run(60)
    assert len([asked for asked in detectors.asked if not asked.answered_at]) > 20
    assert detectors.refused() == []


def test_under_overload_what_a_stuck_replica_keeps_is_given_up() -> None:
    """After some seconds the other one has all its work again, and the bound holds."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.ask(at_random(90, 0, 60))
    detectors.at(10, lambda: setattr(detectors, "stuck", []))
    detectors.at(14, lambda: setattr(detectors, "stuck", None))
    detectors.run(70)
    settled = detectors.accepted(22, 60)
    assert len(settled) > 0.9 * 30 * 38
    assert longest_s(settled) < 1.5 * MAX_WAIT_S


def test_the_first_refusals_tell_a_time_that_is_sensible() -> None:
    """A thousand at once, as the very first requests."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.ask([0.0] * 1000)
    detectors.run(20)
    assert len(detectors.accepted()) == 320
    assert all(15 < (asked.retry_after_s or 0) < 25 for asked in detectors.refused())


def test_bursts_that_can_be_worked_off_are_let_in() -> None:
    """Eighty every four seconds are no overload."""
    detectors = Detectors(MAX_WAIT_S)
    detectors.ask([4.0 * burst for burst in range(15) for _ in range(80)])
    detectors.run(60)
    assert detectors.refused() == []
