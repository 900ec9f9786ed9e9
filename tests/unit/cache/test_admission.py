"""Admission picks the fewest victims in the policy's order, or says why there are none."""

from collections.abc import Mapping

import pytest

from serve_app.cache import CacheLimits
from serve_app.cache.admission import Verdict, admit, in_mib, refusal, surplus
from serve_app.cache.ledger import ByteLedger
from serve_app.errors import ModelExceedsBudgetError, OverloadedError
from serve_app.types import Footprint, ModelKey
from tests.unit.cache.fakes import A, B, C, D, E


def holding(footprints: Mapping[ModelKey, Footprint]) -> ByteLedger:
    """Return a ledger of these."""
    ledger = ByteLedger()
    for key, footprint in footprints.items():
        ledger.add(key, footprint)
    return ledger


def test_free_room_needs_no_victims() -> None:
    """What fits beside everything evicts nothing."""
    admission = admit(C, Footprint(5), holding({A: Footprint(5)}), [A], CacheLimits(10))
    assert admission.verdict is Verdict.FITS
    assert admission.victims == ()


def test_victims_are_taken_in_order_until_it_fits() -> None:
    """The first in order go, the rest stays."""
    ledger = holding({A: Footprint(4), B: Footprint(4), C: Footprint(4)})
    admission = admit(D, Footprint(6), ledger, [B, A, C], CacheLimits(12))
    assert admission.victims == (B, A)
    assert admission.reason == "budget"


def test_unnecessary_victims_are_spared() -> None:
    """Small models before a large one in order stay when the large one alone is enough."""
    ledger = holding({A: Footprint(1), B: Footprint(1), C: Footprint(10)})
    assert admit(D, Footprint(9), ledger, [A, B, C], CacheLimits(12)).victims == (C,)


def test_last_holder_frees_the_graph() -> None:
    """Evicting both holders of a graph frees it, so a third small model may stay."""
    graph = {"g": 50}
    ledger = holding({A: Footprint(5, graph), B: Footprint(5, graph), C: Footprint(5)})
    admission = admit(D, Footprint(60), ledger, [A, B, C], CacheLimits(65))
    assert admission.victims == (A, B)


def test_graph_that_the_new_model_shares_is_not_freed() -> None:
    """Evicting the only other holder of the new model's graph frees its own bytes only."""
    graph = {"g": 50}
    ledger = holding({A: Footprint(5, graph), B: Footprint(5)})
    admission = admit(D, Footprint(10, graph), ledger, [A, B], CacheLimits(60))
    assert admission.victims == (A, B)


def test_count_and_bytes_hold_at_once() -> None:
    """A cap on the number of models evicts although the bytes would fit, and says so."""
    ledger = holding({A: Footprint(1), B: Footprint(1)})
    admission = admit(C, Footprint(1), ledger, [A, B], CacheLimits(100, max_models=2))
    assert admission.victims == (A,)
    assert admission.reason == "max_models"


def test_models_in_use_are_worth_waiting_for() -> None:
    """What is neither evictable nor pinned may become free."""
    admission = admit(B, Footprint(6), holding({A: Footprint(6)}), [], CacheLimits(10))
    assert admission.verdict is Verdict.BUSY
    assert admission.victims == ()


def test_pinned_models_are_not_worth_waiting_for() -> None:
    """When pins alone leave no room, waiting does not help; pins that are absent do not count."""
    limits = CacheLimits(10, None, frozenset({A, E}))
    ledger = holding({A: Footprint(6), B: Footprint(4)})
    assert admit(C, Footprint(6), ledger, [B], limits).verdict is Verdict.PINNED
    assert admit(C, Footprint(4), ledger, [], limits).verdict is Verdict.BUSY


def test_pins_that_fill_the_count_are_told() -> None:
    """The cap on the number of models can be filled by pins too."""
    limits = CacheLimits(100, 1, frozenset({A}))
    assert admit(B, Footprint(1), holding({A: Footprint(1)}), [], limits).verdict is Verdict.PINNED


def test_larger_than_the_budget_never_fits() -> None:
    """A model that is too large alone evicts nothing, even where its graph is held."""
    ledger = holding({A: Footprint(1, {"g": 8})})
    admission = admit(B, Footprint(3, {"g": 8}), ledger, [A], CacheLimits(10))
    assert admission.verdict is Verdict.NEVER


def test_surplus_returns_all_when_all_is_not_enough() -> None:
    """Over a shrunk budget everything that may go goes, and the caller learns it is not enough."""
    ledger = holding({A: Footprint(5), B: Footprint(5), C: Footprint(5)})
    assert surplus(ledger, [A, B], CacheLimits(4)) == ((A, B), False)
    assert surplus(ledger, [A, B], CacheLimits(20)) == ((), True)


def test_refusals_name_the_model_and_the_sizes() -> None:
    """Each verdict has its error, with Retry-After where a retry can help."""
    limits = CacheLimits(20 * 2**20)
    need = Footprint(30 * 2**20)
    never = refusal(Verdict.NEVER, A, need, limits)
    assert isinstance(never, ModelExceedsBudgetError)
    assert "30 MiB" in never.detail
    assert "20 MiB" in never.detail
    for verdict in (Verdict.BUSY, Verdict.PINNED):
        error = refusal(verdict, A, need, limits)
        assert isinstance(error, OverloadedError)
        assert error.retry_after_s is not None


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (2**20, "1"), (3 * 2**19, "1.5"), (300 * 2**20 + 5, "300")]
)
def test_bytes_are_written_in_mib(count: int, text: str) -> None:
    """Errors speak in MiB."""
    assert in_mib(count) == text


@pytest.mark.parametrize(("budget", "count"), [(-1, None), (1, 0)])
def test_senseless_limits_are_refused(budget: int, count: int | None) -> None:
    """A negative budget or a cap of none is a mistake."""
    with pytest.raises(ValueError, match="must"):
        CacheLimits(budget, count)
