"""Which replica is preferred: the rules that a router keeps to, one by one."""

import random
from collections import Counter

import pytest

from serve_app.routing.idfilter import IdFilter
from serve_app.routing.scoring import RoutingConfig
from tests.unit.routing.fleet import GIB, LIMIT, Fleet, stats

CONFIG = RoutingConfig()


def test_the_holder_is_preferred() -> None:
    """Even where others are idle, as long as its queue is short."""
    fleet = Fleet("a", "b", "c")
    fleet.models["b"] = {"m"}
    fleet.tell()
    fleet.queues = {"a": 0, "b": 5, "c": 0}
    ranked = fleet.rank("m")
    assert ranked[0] == ["b"]
    assert set(ranked[-1]) == {"a", "b", "c"}


def test_a_cold_model_has_the_same_place_for_every_router() -> None:
    """Whatever the order in which they learned of the replicas."""
    one, other = Fleet("a", "b", "c", "d"), Fleet("d", "c", "b", "a")
    models = [f"m{index}" for index in range(300)]
    places = [one.rank(model)[0] for model in models]
    assert places == [other.rank(model)[0] for model in models]
    counted = Counter(place[0] for place in places)
    assert len(counted) == 4
    assert max(counted.values()) < 150


def test_a_small_difference_in_queues_moves_no_cold_model() -> None:
    """Routers see slightly different queues and should agree all the same; a large one counts."""
    fleet = Fleet("a", "b", "c", "d")
    (home,), (second,) = fleet.rank("m")[:2]
    fleet.queues = {home: 4}
    assert fleet.rank("m")[0] == [home]
    fleet.queues = {home: 50}
    assert fleet.rank("m")[0] == [second]


def test_a_load_that_is_not_visible_yet_is_joined() -> None:
    """The second request for a cold model goes where the first went, whatever the queues say."""
    fleet = Fleet("a", "b", "c", "d")
    first = fleet.send("m")
    fleet.queues = {first: 12}
    assert {fleet.send("m") for _ in range(5)} == {first}
    fleet.tell()  # a broadcast from before
    assert fleet.send("m") == first


def test_an_expected_load_that_never_shows_is_forgotten() -> None:
    """It was refused, or evicted at once: after a while the model has its usual place."""
    fleet = Fleet("a", "b", "c", "d")
    home = fleet.rank("m")[0][0]
    fleet.queues = {home: 40}
    elsewhere = fleet.send("m")
    assert elsewhere != home
    fleet.complete_all()
    fleet.queues = {}
    assert fleet.send("m") == elsewhere
    fleet.complete_all()
    fleet.clock.now += CONFIG.visible_s + 0.1
    assert fleet.send("m") == home


def test_a_load_in_progress_elsewhere_is_joined() -> None:
    """What another router has sent shows as loading there."""
    fleet = Fleet("a", "b", "c", "d")
    home = fleet.rank("m")[0][0]
    other = next(id_ for id_ in fleet.models if id_ != home)
    fleet.models[other] = {"m"}
    fleet.stats[other] = stats(loading=frozenset({"m"}))
    fleet.tell()
    assert fleet.rank("m")[0] == [other]


def test_prepared_and_parked_weights_draw_a_model() -> None:
    """Elsewhere it would have to be fetched first."""
    fleet = Fleet("a", "b", "c", "d")
    (home,), (second,) = fleet.rank("m")[:2]
    nothing, everything = IdFilter.of([]), IdFilter.of(["m"])
    fleet.stats = {id_: stats(prepared=nothing) for id_ in fleet.models}
    fleet.stats[second] = stats(prepared=everything)
    fleet.tell()
    assert fleet.rank("m")[0] == [second]
    fleet.stats[home] = stats(prepared=everything)
    fleet.tell()
    assert fleet.rank("m")[0] == [home]
    fleet.stats[second] = stats(prepared=everything, parked=frozenset({"m"}))
    fleet.tell()
    assert fleet.rank("m")[0] == [second]


def test_room_counts_in_bytes() -> None:
    """A cold model goes past a full replica to one with room, however many models that holds."""
    fleet = Fleet("a", "b", "c", "d")
    (home,), (second,) = fleet.rank("m")[:2]
    fleet.models[home] = {"large"}
    fleet.stats[home] = stats(free_bytes=GIB // 8, model_bytes=GIB // 8 * 7)
    fleet.models[second] = {f"small-{index}" for index in range(50)}
    fleet.stats[second] = stats(free_bytes=GIB // 2, model_bytes=GIB // 100)
    fleet.tell()
    assert fleet.rank("m")[0] == [second]
    fleet.stats[second] = stats(free_bytes=0, model_bytes=GIB // 100)
    fleet.tell()
    assert fleet.rank("m")[0] == [home]  # both are full: the first place again


def test_where_pins_leave_no_room_no_model_is_loaded() -> None:
    """However short its queue is: it would refuse the model while others can make room."""
    fleet = Fleet("a", "b", "c", "d")
    fleet.models["a"], fleet.models["b"] = {"pin"}, {"pin"}
    for id_, free_bytes in (("a", 0), ("b", GIB)):
        fleet.stats[id_] = stats(free_bytes=free_bytes, room_bytes=0, model_bytes=GIB // 8)
    for id_ in ("c", "d"):
        fleet.stats[id_] = stats(free_bytes=0, room_bytes=GIB, model_bytes=GIB // 8)
    fleet.queues = {"c": 20, "d": 20}
    fleet.tell()
    for index in range(50):
        ranked = fleet.rank(f"m{index}")
        assert {id_ for rank in ranked for id_ in rank} == {"c", "d"}
    assert fleet.rank("pin")[0][0] in {"a", "b"}
    fleet.stats["c"] = fleet.stats["d"] = fleet.stats["a"]
    fleet.tell()
    homes = {fleet.rank(f"m{index}")[0][0] for index in range(50)}
    assert len(homes) == 4, "where none has room, all have their part of the models again"


def test_no_copy_where_pins_leave_no_room() -> None:
    """A further copy goes past such a replica, and nowhere if there is no other."""
    fleet = Fleet("a", "b", "c")
    fleet.models["a"] = {"hot"}
    fleet.stats["a"] = stats(busy={"hot": 1.0}, model_bytes=GIB // 8)
    fleet.stats["b"] = stats(room_bytes=GIB // 16)
    fleet.queues = {"a": LIMIT - 1, "c": LIMIT - 2}
    fleet.tell()
    assert "b" not in {id_ for rank in fleet.rank("hot") for id_ in rank}
    fleet.stats["c"] = fleet.stats["b"]
    fleet.tell()
    fleet.queues = {"a": LIMIT}
    assert fleet.rank("hot") == [["a"], ["a"]]


def test_a_full_fleet_is_asked_in_turn() -> None:
    """All of it now and then, else a few: each try of each request would ask everyone."""
    fleet = Fleet(*(f"r{index}" for index in range(8)))
    fleet.models["r3"] = {"m"}
    fleet.tell()
    fleet.clock.now = 10.0
    fleet.queues = dict.fromkeys(fleet.models, LIMIT)
    assert fleet.rank("m") == [["r3"], list(fleet.models)]
    asked = Counter(id_ for _ in range(40) for id_ in fleet.rank("m")[1])
    assert asked == dict.fromkeys(fleet.models, 10)
    for free in fleet.models:
        fleet.queues[free] = 0
        assert len(fleet.rank("m")[-1]) == 8, "there is one with room, and it is named"
        fleet.queues[free] = LIMIT
    fleet.clock.now += 0.25
    assert len(fleet.rank("m")[-1]) == 8


def test_of_many_full_holders_a_few_are_asked() -> None:
    """Those of a hot model are all full together."""
    fleet = Fleet(*(f"r{index}" for index in range(8)))
    fleet.models = {id_: {"hot"} for id_ in fleet.models}
    fleet.stats = {id_: stats(busy={"hot": 0.9}) for id_ in fleet.models}
    fleet.queues = dict.fromkeys(fleet.models, LIMIT)
    fleet.tell()
    assert fleet.copies("hot") == 8
    asked = [fleet.rank("hot")[0] for _ in range(8)]
    assert {len(rank) for rank in asked} == {3}
    assert {id_ for rank in asked for id_ in rank} == set(fleet.models)


def test_a_new_replica_takes_its_part() -> None:
    """It has measured nothing yet, and counts as what the others have measured."""
    fleet = Fleet("a", "b", "c", "d")
    warm = stats(load_s=0.02, request_s=0.01, free_bytes=0, model_bytes=GIB // 100)
    (home,) = fleet.rank("m")[0]
    fleet.stats = dict.fromkeys(fleet.stats, warm)
    fleet.stats[home] = stats(load_s=0.0, request_s=0.0)
    fleet.tell()
    assert fleet.rank("m")[0] == [home]
    fleet.stats[home] = stats(load_s=0.0, request_s=0.0, free_bytes=GIB // 200)
    fleet.tell()
    assert fleet.rank("m")[0] == [home], "short of room as all are, it is no worse than they are"


def test_a_full_holder_is_asked_first_and_then_passed_over() -> None:
    """What is known of a queue may be out of date; but nobody waits for it."""
    fleet = Fleet("a", "b", "c")
    fleet.models["b"] = {"m"}
    fleet.queues = {"b": LIMIT}
    fleet.tell()
    ranked = fleet.rank("m")
    assert ranked[0] == ["b"]
    assert ranked[1] in (["a"], ["c"])
    assert fleet.send("m") != "b"


def test_a_long_queue_of_others_makes_no_copy() -> None:
    """A model that is asked for now and then waits at its holder rather than load elsewhere.

    Else a fleet with too much to do would do more: each load takes time from somebody.
    """
    fleet = Fleet("a", "b", "c")
    fleet.models["b"] = {"m"}
    fleet.tell()
    fleet.queues = {"a": 0, "b": LIMIT - 1, "c": 0}
    assert fleet.rank("m")[0] == ["b"]
    assert fleet.copies("m") == 1


def test_who_waits_for_a_load_asks_for_no_copy() -> None:
    """However many: another replica would have to load it, too."""
    fleet = Fleet("a", "b", "c")
    fleet.stats = {id_: stats(load_s=1.0) for id_ in fleet.models}
    fleet.tell()
    went = {fleet.send("m") for _ in range(60)}
    assert len(went) == 1
    assert fleet.copies("m") == 1


def test_a_rare_model_never_gets_a_second_copy() -> None:
    """However often it is asked for now and then, beside whatever others do."""
    fleet = Fleet(*(f"r{index}" for index in range(8)))
    fleet.models["r3"] = {"rare"}
    fleet.tell()
    went = set()
    chance = random.Random(4)  # noqa: S311
    for _ in range(500):
        fleet.queues = {id_: chance.randrange(50) for id_ in fleet.models}
        went.add(fleet.send("rare"))
        fleet.complete_all()
        fleet.clock.now += 0.2
    assert went == {"r3"}


def test_of_two_copies_that_one_would_do_all_routers_use_the_same() -> None:
    """So that the other is not used any more, and goes."""
    one, other = Fleet("a", "b", "c"), Fleet("c", "b", "a")
    for fleet in (one, other):
        fleet.models["a"], fleet.models["c"] = {"m"}, {"m"}
        fleet.tell()
    went = set()
    for _ in range(10):
        went |= {one.send("m"), other.send("m")}
        one.complete_all()
        other.complete_all()
    assert went in ({"a"}, {"c"})


def test_a_hot_model_gets_copies_and_gives_them_back() -> None:
    """The load is spread over them; when it is gone only the first is used."""
    fleet = Fleet("a", "b", "c", "d")
    fleet.models["a"] = {"hot"}
    fleet.stats["a"] = stats(busy={"hot": 0.95})
    fleet.tell()
    assert fleet.copies("hot") == 2
    fleet.queues = {"a": 15}
    second = fleet.rank("hot")[0][0]
    assert second != "a"
    fleet.models[second] = {"hot"}
    fleet.tell()
    fleet.queues = {"a": 3, second: 3}
    assert {fleet.rank("hot")[0][0] for _ in range(4)} == {"a", second}
    fleet.queues = {"a": 3, second: 1}
    assert {fleet.rank("hot")[0][0] for _ in range(4)} == {second}

    fleet.stats["a"] = stats(busy={"hot": 0.1})
    fleet.tell()
    fleet.clock.now += CONFIG.calm_s
    fleet.tell()
    assert fleet.copies("hot") == 1
    fleet.queues = {}
    assert len({fleet.rank("hot")[0][0] for _ in range(8)}) == 1


def test_a_copy_too_many_is_used_while_it_is_there() -> None:
    """It may be pinned, and costs nothing; only the first is used while its queue is short."""
    fleet = Fleet("a", "b", "c")
    fleet.models = {"a": {"m"}, "b": {"m"}, "c": set()}
    fleet.tell()
    first = fleet.rank("m")[0][0]
    (other,) = {"a", "b"} - {first}
    fleet.queues = {first: 2, other: 0}
    assert fleet.rank("m")[0] == [first]
    fleet.queues = {first: 8, other: 0}
    assert fleet.rank("m")[0] == [other]
    fleet.stats[other] = stats(loading=frozenset({"m"}), load_s=2.0)
    fleet.tell()
    assert fleet.rank("m")[0] == [first]


def test_a_step_leaves_no_copy_out() -> None:
    """The decision that asks for one more looks at every copy there is."""
    fleet = Fleet("a", "b", "c")
    fleet.models = {id_: {"m"} for id_ in fleet.models}
    fleet.tell()
    first = fleet.rank("m")[0][0]
    rest = sorted(set(fleet.models) - {first})
    for serial in range(40):
        fleet.view.sent("m", first, str(serial))
    for idle, busy in (rest, reversed(rest)):
        fleet.view._demand = type(fleet.view._demand)(CONFIG)
        fleet.queues = {busy: 30, idle: 0}
        assert fleet.rank("m")[0] == [idle]
        assert fleet.copies("m") == 2


def test_a_backlog_of_its_own_makes_a_router_notice_sooner() -> None:
    """Before any replica has told of its load."""
    fleet = Fleet("a", "b")
    fleet.models["a"] = {"hot"}
    fleet.tell()
    went = []
    for _ in range(60):
        went.append(fleet.send("hot"))
        fleet.queues = dict(Counter(went))
    assert fleet.copies("hot") == 2
    assert set(went) == {"a", "b"}


def test_own_requests_count_where_no_queue_is_known() -> None:
    """And where what is known is older than they are."""
    fleet = Fleet("a", "b")
    fleet.models = {"a": {"hot"}, "b": {"hot"}}
    fleet.stats = {id_: stats(busy={"hot": 0.9}) for id_ in fleet.models}
    fleet.tell()
    went = Counter(fleet.send("hot") for _ in range(40))
    assert went["a"] == pytest.approx(20, abs=2)
    fleet.queues = {"a": 0, "b": 0}
    went += Counter(fleet.send("hot") for _ in range(40))
    assert went["a"] == pytest.approx(40, abs=2)


def test_a_slow_replica_gets_less() -> None:
    """What counts is how long a request waits, not behind how many."""
    fleet = Fleet("fast", "slow")
    fleet.models = {"fast": {"hot"}, "slow": {"hot"}}
    fleet.stats = {
        "fast": stats(busy={"hot": 0.9}, request_s=0.01),
        "slow": stats(busy={"hot": 0.9}, request_s=0.04),
    }
    fleet.tell()
    went = Counter(fleet.send("hot") for _ in range(50))
    assert went["fast"] == pytest.approx(40, abs=2)


def test_a_replica_that_goes_is_not_named_again() -> None:
    """By a broadcast or at once; nobody is named where nobody is left."""
    fleet = Fleet("a", "b")
    fleet.models["a"] = {"m"}
    fleet.tell()
    assert fleet.send("m") == "a"
    fleet.view.gone("a")
    assert fleet.rank("m") == [["b"], ["b"]]
    del fleet.models["a"]
    fleet.tell()
    fleet.view.sent("m", "a", "too late")
    fleet.view.completed("too late")
    del fleet.models["b"]
    fleet.tell()
    assert fleet.rank("m") == []


def test_a_decision_looks_at_few_replicas() -> None:
    """Of 64, the holders that should be used and the next place."""
    ids = [f"r{index}" for index in range(64)]
    fleet = Fleet(*ids)
    chance = random.Random(3)  # noqa: S311
    fleet.models = {id_: {f"m{chance.randrange(2000)}" for _ in range(16)} for id_ in ids}
    for id_ in ids[:6]:
        fleet.models[id_].add("hot")
        fleet.stats[id_] = stats(busy={"hot": 0.5})
    fleet.tell()
    for index in range(2000):
        fleet.asked = 0
        fleet.rank(f"m{index}")
        assert fleet.asked <= 3
    fleet.asked = 0
    fleet.rank("hot")
    assert fleet.asked <= 7
