"""Which servers run, and what each is asked."""

from dataclasses import replace

import pytest

from benchmarks import plan
from benchmarks.plan import FULL, QUICK, SCENARIOS, make_plan
from benchmarks.steps import STEPS


def test_a_server_is_started_once_for_all_that_it_is_asked() -> None:
    """Scenarios share servers, and each server's steps are in one fixed order."""
    (visits,) = make_plan(["zipf", "hot"], replace(FULL, passes=1))
    servers = [visit.server for visit in visits]
    assert len(servers) == len(set(servers))
    steps = {visit.server: visit.steps for visit in visits}
    assert steps[plan.AUTO] == ("grow", "hot1", "hot8", "zipf")
    assert steps[plan.ALL] == ("grow", "zipf")


def test_what_others_build_on_comes_first() -> None:
    """Our capacity sets the offered load of all, and stock's growth a budget."""
    (visits, *_) = make_plan(SCENARIOS, FULL)
    order = [visit.server for visit in visits]
    assert order.index(plan.AUTO) < order.index(plan.STOCK) < order.index(plan.BUDGET)
    auto = visits[order.index(plan.AUTO)]
    assert auto.steps.index("hot8") < auto.steps.index("open")


def test_second_passes_are_short_and_reversed() -> None:
    """They repeat the narrowest ratios only."""
    first, second = make_plan(SCENARIOS, FULL)
    repeated = [visit.server for visit in second]
    assert repeated == [v.server for v in reversed(first) if v.server in plan.REPEATED]
    assert all(set(visit.steps) <= plan.REPEATED[visit.server] for visit in second)


def test_the_open_scenario_alone_has_all_that_it_needs() -> None:
    """The capacity and the yardstick of goodput are measured with it."""
    (visits, *_) = make_plan(["open"], replace(QUICK, passes=1))
    steps = {visit.server: visit.steps for visit in visits}
    assert "hot8" in steps[plan.AUTO]
    assert steps[plan.BARE_AUTO] == ("measure",)


def test_skipped_servers_are_left_out() -> None:
    """A quick run asks fewer."""
    (visits,) = make_plan(SCENARIOS, QUICK)
    assert not QUICK.skipped & {visit.server for visit in visits}


def test_every_step_of_every_scenario_exists() -> None:
    """Each server that is named has its place in the order, each step a function."""
    for servers in SCENARIOS.values():
        for server, steps in servers.items():
            assert server in plan.ORDER
            assert set(steps) <= set(plan.STEPS)
            assert set(steps) - {"grow", "measure"} <= set(STEPS)


def test_an_unknown_scenario_is_named() -> None:
    """A slip of the pen does not measure nothing."""
    with pytest.raises(ValueError, match="no scenario 'hto'; there are hot, zipf"):
        make_plan(["hto"], FULL)
