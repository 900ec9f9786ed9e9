"""How fast the detectors are: measured while a queue waits, known only while they answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.answer_rate import AnswerRate
from tests.unit.ingress.fakes import Clock


class Answers:
    """A rate, and answers that come at a pace."""

    def __init__(self, patience_s: float = 0.0) -> None:
        self.clock = Clock()
        self.rate = AnswerRate(self.clock, patience_s)
        self.rate.begin()

    def come(self, per_s: float, seconds: float, *, queued: bool = True, together: int = 1) -> None:
        """Have answers come, some at the same moment."""
        for _ in range(round(per_s * seconds / together)):
            self.clock.now += together / per_s
            for _ in range(together):
                self.rate.answered(queued=queued)


@pytest.fixture
def answers() -> Answers:
    """Return those of detectors that begin now."""
    return Answers()


def test_nothing_is_known_at_first(answers: Answers) -> None:
    """But something is assumed, for a whole second."""
    assert answers.rate.known_per_s is None
    assert answers.rate.per_s == pytest.approx(16.0)
    answers.clock.now += 1.0
    assert answers.rate.per_s == pytest.approx(16.0)


@pytest.mark.parametrize("together", [1, 4, 8])
@pytest.mark.parametrize("per_s", [10.0, 30.0, 400.0])
def test_it_is_measured_while_a_queue_waits(answers: Answers, per_s: float, together: int) -> None:
    """Whether answers come one by one or several at a time."""
    answers.come(per_s, 10, together=together)
    assert answers.rate.known_per_s == pytest.approx(per_s, rel=0.15)
    assert answers.rate.per_s == pytest.approx(per_s, rel=0.15)


def test_slow_detectors_are_measured_for_longer(answers: Answers) -> None:
    """One answer every 1.4 s, each longer than what elsewhere is a silence."""
    answers.come(0.7, 60)
    assert answers.rate.known_per_s == pytest.approx(0.7, rel=0.01)


def test_what_came_without_a_queue_is_not_counted(answers: Answers) -> None:
    """One client after the other shows how long an answer takes, not how many are possible."""
    answers.come(5, 20, queued=False)
    assert answers.rate.known_per_s is None
    answers.come(100, 2)
    assert answers.rate.known_per_s == pytest.approx(100, rel=0.01)


def test_it_follows_what_happens_now(answers: Answers) -> None:
    """A fleet that lost half its replicas is known to have after some seconds."""
    for per_s in (40, 20, 80):
        answers.come(per_s, 15)
        assert answers.rate.known_per_s == pytest.approx(per_s, rel=0.1)


def test_in_a_silence_nothing_is_known(answers: Answers) -> None:
    """A model is loaded, say. What is expected sinks by what it lasts."""
    answers.come(50, 10)
    answers.clock.now += 0.9
    assert answers.rate.known_per_s is not None
    before = answers.rate.per_s
    answers.clock.now += 0.2
    assert answers.rate.known_per_s is None
    answers.clock.now += 10.0
    assert answers.rate.per_s < before / 3
    answers.clock.now += 100.0
    assert answers.rate.per_s < 0.2


def test_what_others_get_meanwhile_is_a_part_of_the_rate() -> None:
    """Of four that share the detectors each gets a row of answers in turn, and a quarter of all."""
    answers = Answers(patience_s=6.0)
    answers.come(30, 2)
    for _ in range(6):
        answers.clock.now += 4.5
        assert answers.rate.known_per_s is not None
        answers.come(30, 1.5)
    assert answers.rate.known_per_s == pytest.approx(30 / 4, rel=0.35)
    answers.clock.now += 6.1
    assert answers.rate.known_per_s is None


def test_nobody_is_waited_for_while_nothing_is_known() -> None:
    """Between two loads in a row others would not get answers either."""
    answers = Answers(patience_s=6.0)
    for load_s in (60, 5):
        answers.clock.now += load_s
        answers.rate.answered(queued=True)
    answers.come(10, 1.5)
    assert answers.rate.known_per_s == pytest.approx(10, rel=0.01)


def test_after_a_silence_it_is_measured_anew(answers: Answers) -> None:
    """Neither the silence nor what was before it counts for long."""
    answers.come(50, 10)
    answers.clock.now += 20.0
    answers.come(10, 0.5)
    assert answers.rate.known_per_s is None
    answers.come(10, 1.0)
    assert answers.rate.known_per_s == pytest.approx(10, rel=0.01)
    answers.come(10, 2.0)
    assert answers.rate.per_s == pytest.approx(10, rel=0.2)


def test_two_loads_in_a_row_are_no_measure() -> None:
    """However long the first took, the second is a silence as well."""
    answers = Answers()
    for load_s in (60, 5):
        answers.clock.now += load_s
        answers.rate.answered(queued=True)
    answers.come(10, 1.5)
    assert answers.rate.known_per_s == pytest.approx(10, rel=0.01)


def test_with_new_calls_nothing_is_held_against_them(answers: Answers) -> None:
    """The time without calls is no silence, and an old one is forgotten."""
    answers.clock.now += 100.0
    assert answers.rate.per_s < 0.1
    answers.rate.answered(queued=True)
    assert answers.rate.per_s < 0.1
    answers.rate.begin()
    assert answers.rate.per_s == pytest.approx(16.0)


def test_what_is_known_fades(answers: Answers) -> None:
    """Half a minute later the fleet may be another."""
    answers.come(30, 10)
    answers.clock.now += 30.0
    answers.rate.begin()
    assert answers.rate.known_per_s is None


@given(
    st.lists(st.tuples(st.floats(0, 100), st.booleans(), st.booleans()), max_size=60),
    st.sampled_from([0.0, 6.0, 1e4]),
)
def test_it_is_a_rate_whatever_happens(
    steps: list[tuple[float, bool, bool]], patience_s: float
) -> None:
    """Above nothing, and finite."""
    answers = Answers(patience_s)
    for passed_s, queued, anew in steps:
        answers.clock.now += passed_s
        if anew:
            answers.rate.begin()
        answers.rate.answered(queued=queued)
        assert 0 < answers.rate.per_s < 1e6
        known = answers.rate.known_per_s
        assert known is None or known > 0
