"""The report on routing: ratios are the worst seed's, and what others wrote below is kept."""

from dataclasses import replace

import pytest

from benchmarks.routing.__main__ import SEEDS, planned
from benchmarks.routing.report import KEPT, ratios, report, rewritten
from benchmarks.routing.results import Figures, Run, mean
from benchmarks.routing.simulator import OURS, STOCK_ROUTER
from benchmarks.routing.workload import CELLS, Scale

SCALE = Scale(requests=1000)
FIGURES = Figures(
    requests=800,
    misses=200,
    first=40,
    copied=30,
    cold=0.3,
    fetches=10,
    evictions=190,
    p50_s=0.1,
    p99_s=2.0,
    in_time=0.5,
    copies=1.2,
    most_copies=9,
    doubled=0.1,
    balance=1.5,
    decision_us=12.4,
    slow_decision_us=80,
)


def results(ours: Figures, worst: Figures) -> dict[Run, Figures]:
    """Return a whole plan's: stock's as above, ours as given, the last seed's the worst."""
    found = {}
    for run in planned(SCALE):
        last = worst if run.seed == SEEDS[-1] else ours
        found[run] = last if run.system == OURS.name else FIGURES
    return found


def test_the_worst_seed_counts() -> None:
    """Not the mean: one bad seed is enough to miss a target."""
    good = replace(FIGURES, misses=50, p99_s=0.5)
    got = ratios(results(good, replace(good, misses=120)), CELLS[0])
    assert got.misses == pytest.approx(0.6)
    assert got.p99 == pytest.approx(0.25)
    assert got.stock == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("worst", "met"),
    [
        ({}, True),
        ({"misses": 101}, False),
        ({"p99_s": 2.1}, False),
        ({"decision_us": 51.0}, False),
    ],
)
def test_a_target_is_met_by_all_seeds_or_not_at_all(worst: dict[str, float], met: bool) -> None:
    """Misses, p99 and the time of a decision, each cell by itself."""
    good = replace(FIGURES, misses=100, p99_s=1.9)
    text = report(results(good, replace(good, **worst)), dict.fromkeys(CELLS, 0.1))
    conclusion = text.partition("## Where ours misses")[0].splitlines()
    verdicts = [line.split("|")[-2].strip() for line in conclusion if line.startswith("| W")]
    assert verdicts == ["yes" if met else "**no**"] * len(CELLS)


def test_loads_are_told_by_their_cause() -> None:
    """What one cache loads again is what it misses less what nobody had loaded before."""
    text = report(results(FIGURES, FIGURES), dict.fromkeys(CELLS, 0.1))
    rows = text.partition("## Where ours misses")[2].partition("## Every row")[0].splitlines()
    found = [row for row in rows if row.startswith("| W")]
    assert len(found) == len(CELLS)
    assert all(row.endswith("| 200 | 40 | 30 | 130 | 40 |") for row in found)


def test_every_row_is_in_the_report() -> None:
    """Each cell with each system that ran in it, as the mean of its seeds."""
    found = results(FIGURES, replace(FIGURES, misses=500))
    rows = report(found, dict.fromkeys(CELLS, 0.1)).partition("## Every row")[2].splitlines()
    systems = {(run.cell, run.system) for run in found}
    assert len([row for row in rows if row.startswith("| W")]) == len(systems)
    ours = [row for row in rows if f"| {OURS.name} |" in row]
    assert len(ours) == len(CELLS)
    assert all("| 300 (37.5%) | 1.50 x |" in row for row in ours)
    assert any(f"| {STOCK_ROUTER.name} |" in row for row in rows)


def test_a_mean_is_taken_of_each_figure() -> None:
    """Of misses as of times."""
    both = mean([FIGURES, replace(FIGURES, misses=100, p99_s=1.0)])
    assert both == replace(FIGURES, misses=150, p99_s=1.5)


def test_what_others_wrote_below_is_kept() -> None:
    """From the heading on, word for word; without it nothing is."""
    below = f"\n{KEPT}\n\nMeasured by somebody else.\n"
    assert rewritten("old\n" + below, "new\n") == "new\n" + below
    assert rewritten("old\n", "new\n") == "new\n"
