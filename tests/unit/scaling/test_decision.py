"""How many replicas: by queues, by the working set while it is lacking, by what must be held."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.scaling.decision import (
    Fleet,
    Outgrown,
    ReplicaLoad,
    ScalingRules,
    decide,
    is_thrashing,
    pinned_bytes,
    replicas_needed,
    union_bytes,
)

RULES = ScalingRules()
CALM = ReplicaLoad(100.0, working_set_bytes=40.0, asked=4, requests_per_s=5.0)
THRASHING = replace(CALM, working_set_bytes=200.0, regrets_per_s=2.0)


def _fleet(*replicas: ReplicaLoad, **changes: Any) -> Fleet:  # noqa: ANN401
    count = len(replicas)
    plain = Fleet(
        replicas, running=count, target=count, least=1, most=10, requests=1, target_requests=16
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("requests", "replicas"), [(0.0, 1), (16.0, 1), (16.0000001, 1), (17.0, 2), (159.0, 10)]
)
def test_queues_decide_as_in_rays_own_policy(requests: float, replicas: int) -> None:
    """So many requests for each replica, within the bounds."""
    assert decide(_fleet(CALM, requests=requests), RULES).replicas == replicas
    assert decide(_fleet(CALM, requests=500.0), RULES) == decide(
        _fleet(CALM, requests=170.0), RULES
    )


def test_it_grows_by_the_working_set_only_while_models_are_missed() -> None:
    """With no queue at all; and not by what nobody misses."""
    assert decide(_fleet(THRASHING), RULES).replicas == 2
    assert decide(_fleet(replace(THRASHING, working_set_bytes=420)), RULES).replicas == 5
    assert decide(_fleet(replace(THRASHING, regrets_per_s=0.0)), RULES).replicas == 1
    assert decide(_fleet(replace(THRASHING, requests_per_s=500.0)), RULES).replicas == 1


def test_regrets_of_a_single_pass_do_not_scale() -> None:
    """A regret now and then, however few the requests, is below the least rate."""
    assert not is_thrashing([replace(CALM, regrets_per_s=0.01, requests_per_s=0.01)], RULES)
    assert not is_thrashing([CALM], replace(RULES, max_regret_ratio=0.0, min_regrets_per_s=0.0))


def test_one_more_where_the_sum_fits_but_the_parts_do_not() -> None:
    """Up to a bound: beyond it more replicas are not what is lacking."""
    uneven = replace(THRASHING, working_set_bytes=90.0)
    assert decide(_fleet(uneven, uneven), RULES).replicas == 3
    roomy = replace(THRASHING, working_set_bytes=60.0)
    decision = decide(_fleet(roomy, roomy), RULES)
    assert decision.replicas == 2
    assert "room enough" in decision.reason


def test_it_waits_until_the_fleet_has_settled() -> None:
    """Neither up nor down while replicas that were asked for fill their caches."""
    fleet = _fleet(THRASHING, THRASHING, target=3, settled=False, requests=0)
    assert decide(fleet, RULES).replicas == 3


def test_copies_of_hot_models_do_not_keep_the_fleet_up() -> None:
    """Four replicas that all hold the same two models need one."""
    hot = replace(CALM, working_set_bytes=60.0, hot={"a@1": 40.0, "b@1": 20.0})
    assert union_bytes([hot] * 4) == 60.0
    assert decide(_fleet(hot, hot), RULES).replicas == 1


def test_it_shrinks_only_to_what_holds_the_working_set() -> None:
    """With a margin; and never because of it alone below one."""
    apart = [replace(CALM, working_set_bytes=60.0) for _ in range(4)]  # 240 in four times 100
    assert decide(_fleet(*apart), RULES).replicas == 3
    assert decide(_fleet(*apart[:2]), RULES).replicas == 2
    assert decide(_fleet(*[replace(CALM, working_set_bytes=10)] * 2), RULES).replicas == 1
    assert decide(_fleet(*apart), replace(RULES, margin=0.7)).replicas == 4


def test_replicas_go_one_at_a_time_while_their_models_are_wanted() -> None:
    """Of two that went together each might have one of a model's two copies."""
    idle = ReplicaLoad(100.0)
    for wanted in (
        replace(CALM, working_set_bytes=10),
        ReplicaLoad(100.0, asked=1),
        ReplicaLoad(100.0, pinned={"a@1": 5.0}),
        ReplicaLoad(100.0, pinned_bytes=5.0),
        ReplicaLoad(100.0, everywhere_bytes=5.0),
    ):
        decision = decide(_fleet(wanted, idle, idle, idle, requests=0), RULES)
        assert (decision.replicas, decision.reason) == (3, "one at a time")
        assert decide(_fleet(wanted, idle, requests=0), RULES).replicas == 1
        assert decide(_fleet(wanted, idle, idle, idle, requests=0, most=2), RULES).replicas == 2
    assert decide(_fleet(idle, idle, idle, idle, requests=0), RULES).replicas == 1
    assert decide(_fleet(idle, idle, idle, requests=0, least=0), RULES).replicas == 0


def test_replicas_that_never_started_go_at_once() -> None:
    """Nothing is lost with them, and Ray asks for nodes as long as they are wanted."""
    needs_one = replace(CALM, working_set_bytes=10)
    assert decide(_fleet(needs_one, target=10), RULES).replicas == 1
    three = _fleet(*[needs_one] * 3, target=10)
    assert decide(three, RULES).replicas == 2
    assert decide(replace(three, target=3), RULES).replicas == 2, "of those that run, one"
    assert decide(replace(three, target=2), RULES).replicas == 1, "one is going already"


def test_it_does_not_return_to_a_number_that_was_too_small() -> None:
    """Until the working set has become smaller than it was then."""
    grown = decide(_fleet(replace(THRASHING, working_set_bytes=90.0)), RULES)
    assert grown.outgrown == Outgrown(1, 90.0)
    calm = [replace(CALM, working_set_bytes=size) for size in (40.0, 41.0)]
    kept = decide(_fleet(*calm), RULES, grown.outgrown)
    assert kept.replicas == 2
    assert kept.outgrown == grown.outgrown
    less = decide(_fleet(*[replace(CALM, working_set_bytes=30.0)] * 2), RULES, kept.outgrown)
    assert (less.replicas, less.outgrown) == (1, None)


def test_pinned_models_keep_one_and_their_copies_more() -> None:
    """Also where the least number is 0 and nobody asks."""
    idle = ReplicaLoad(100.0)
    assert decide(_fleet(idle, least=0, requests=0), RULES).replicas == 0
    for pinned in (
        ReplicaLoad(100.0, everywhere_bytes=5.0),
        ReplicaLoad(100.0, pinned={"a@1": 5.0}),
        ReplicaLoad(100.0, pinned_bytes=5.0),
    ):
        assert decide(_fleet(pinned, least=0, requests=0), RULES).replicas == 1
    twice = ReplicaLoad(100.0, pinned={"a@1": 10.0}, copies=2)
    assert decide(_fleet(twice, least=0, requests=0), RULES).replicas == 2
    assert decide(_fleet(twice, least=0, most=1, requests=0), RULES).replicas == 1


def test_copies_made_before_a_replica_goes_do_not_keep_it() -> None:
    """What counts of a pinned model is what is wanted, not what there is for the moment."""
    one = ReplicaLoad(100.0, pinned={"a@1": 60.0})
    assert pinned_bytes([one, one]) == 60.0
    assert decide(_fleet(one, one), RULES).replicas == 1


def test_the_last_replica_goes_when_no_model_is_asked_for() -> None:
    """Whatever else calls it; and stays for requests that were not running when Ray looked."""
    asked = replace(CALM, working_set_bytes=0.0, asked=1)
    assert decide(_fleet(asked, least=0, requests=0.0), RULES).replicas == 1
    assert decide(_fleet(replace(asked, asked=0), least=0, requests=0.01), RULES).replicas == 0
    memories = replace(CALM, asked=0)
    assert decide(_fleet(memories, least=0, requests=0.0), RULES).replicas == 0


def test_without_reports_it_goes_by_queues() -> None:
    """Replicas that have just started have told nothing yet."""
    assert decide(_fleet(running=3, target=3, requests=33), RULES).replicas == 3
    assert decide(_fleet(running=3, target=3, requests=0, least=0), RULES).replicas == 0


def test_the_smallest_are_reckoned_with() -> None:
    """Ray chooses which replica goes."""
    assert replicas_needed([300.0, 100.0, 100.0], working_set_bytes=150.0) == 2
    assert replicas_needed([300.0, 100.0, 100.0], working_set_bytes=201.0) == 3
    assert replicas_needed([100.0], working_set_bytes=350.0) == 4
    assert replicas_needed([100.0], working_set_bytes=0.0) == 0
    assert replicas_needed([100.0], working_set_bytes=0.0, everywhere_bytes=5.0) == 1
    assert replicas_needed([100.0] * 4, working_set_bytes=90.0, everywhere_bytes=60.0) == 3
    assert replicas_needed([100.0], working_set_bytes=1.0, everywhere_bytes=100.0) == 2
    assert replicas_needed([], working_set_bytes=1.0) == 1


_bytes = st.integers(0, 10**12)


@given(st.lists(_bytes, max_size=20), _bytes, _bytes, _bytes)
def test_whichever_remain_hold_it(
    budgets: list[int], working_set: int, pinned: int, everywhere: int
) -> None:
    """The number is the least for which the smallest of the fleet have the room."""
    needed = replicas_needed(
        budgets,
        working_set_bytes=working_set,
        pinned_bytes=pinned,
        everywhere_bytes=everywhere,
    )
    rooms = sorted(max(0, budget - everywhere) for budget in budgets)
    enough = [n for n in range(1, len(rooms) + 1) if sum(rooms[:n]) >= working_set + pinned]
    if working_set + pinned == 0:
        assert needed == int(everywhere > 0)
    elif enough:
        assert needed == enough[0]
    else:
        assert needed > len(budgets)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"margins": 1}, "margins: unknown key; known keys: max_regret_ratio"),
        ({"margin": -1}, "margin: -1: write a number, 0 or more"),
        ({"margin": "x"}, "margin: 'x'"),
        ({"settle_s": True}, "settle_s: True"),
        ({"spread": 0.5}, "spread: 0.5: write a number, 1 or more"),
        ({"max_regret_ratio": 2}, "max_regret_ratio: 2: write a share"),
        ({"settle_s": float("nan")}, "settle_s: nan"),
        ({"fixed_cluster": "no"}, "fixed_cluster: 'no': write true, false or null"),
    ],
)
def test_wrong_rules_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    """With what to write."""
    with pytest.raises(ValueError, match=message):
        ScalingRules.parse(values)
