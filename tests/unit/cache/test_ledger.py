"""The byte ledger counts what is held, shared parts once."""

import pytest

from serve_app.cache.ledger import ByteLedger
from serve_app.types import Footprint
from tests.unit.cache.fakes import A, B, C


def test_own_bytes_are_summed() -> None:
    """Models that share nothing cost the sum of their bytes."""
    ledger = ByteLedger()
    ledger.add(A, Footprint(10))
    ledger.add(B, Footprint(5))
    assert ledger.used_bytes == 15
    assert len(ledger) == 2
    assert A in ledger
    assert C not in ledger
    assert ledger[B] == Footprint(5)


def test_shared_part_is_counted_once_and_freed_with_its_last_holder() -> None:
    """A graph costs its bytes from its first holder to its last."""
    ledger = ByteLedger()
    ledger.add(A, Footprint(10, {"g": 100}))
    assert ledger.extra_bytes(Footprint(5, {"g": 100})) == 5
    ledger.add(B, Footprint(5, {"g": 100}))
    assert ledger.used_bytes == 115
    ledger.remove(A)
    assert ledger.used_bytes == 105
    ledger.remove(B)
    assert ledger.used_bytes == 0


def test_part_is_as_large_as_its_largest_holder_says() -> None:
    """The sum depends on who holds a part, not on the order in which they came."""
    small, large = Footprint(0, {"g": 20}), Footprint(0, {"g": 25})
    for first, second in ((small, large), (large, small)):
        ledger = ByteLedger()
        ledger.add(A, first)
        ledger.add(B, second)
        assert ledger.used_bytes == 25
        ledger.remove(A)
        assert ledger.used_bytes == second.total_bytes


def test_replace_corrects_one_footprint() -> None:
    """A measured footprint takes the place of the estimate, parts included."""
    ledger = ByteLedger()
    ledger.add(A, Footprint(10, {"g": 20}))
    ledger.replace(A, Footprint(12, {"h": 30}))
    assert ledger.used_bytes == 42


def test_copy_is_independent() -> None:
    """What is tried on a copy does not change the ledger."""
    ledger = ByteLedger()
    ledger.add(A, Footprint(10, {"g": 20}))
    trial = ledger.copy()
    trial.add(B, Footprint(1, {"g": 20}))
    trial.remove(A)
    assert trial.used_bytes == 21
    assert ledger.used_bytes == 30


def test_key_is_added_once() -> None:
    """Adding a key twice is a mistake of the caller and told as one."""
    ledger = ByteLedger()
    ledger.add(A, Footprint(1))
    with pytest.raises(ValueError, match="already"):
        ledger.add(A, Footprint(1))
