"""Several replicas: shares of preloads, loads on many, pins with copies that outlive replicas."""

import os
import signal
from collections.abc import Callable
from typing import Any

from serve_app.fleet.share import share_of
from tests.integration.fleet.conftest import FLEET_USER_CONFIG
from tests.integration.server import DEMO_MODELS, Server, replicas_of, wait_until

PIN = "codes-n@1"
Replicas = dict[str, dict[str, Any]]


def _holding(replicas: Replicas, key: str) -> set[str]:
    return {
        name
        for name, replica in replicas.items()
        for model in replica["models"]
        if (model["key"], model["state"]) == (key, "resident")
    }


def _pinned(replicas: Replicas, key: str) -> set[str]:
    return {name for name, replica in replicas.items() if key in replica["pinned"]}


def _until(server: Server, condition: Callable[[Replicas], object], what: str) -> Replicas:
    """Wait for `condition` on the replicas' state, and return that state."""

    def state() -> Replicas | None:
        replicas = replicas_of(server)
        return replicas if condition(replicas) else None

    found: Replicas = wait_until(state, 45.0, what)
    return found


def _post(server: Server, path: str) -> dict[str, Any]:
    answer = server.client.post(f"/v1/models/{path}")
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_each_replica_loads_its_share_before_it_is_ready(fleet: Server) -> None:
    """Together they hold every preload, and none holds what falls to the other."""
    replicas = replicas_of(fleet)
    wanted = {f"{name}@1": 1 for name in DEMO_MODELS}
    shares = {tuple(replica["share"]) for replica in replicas.values()}
    assert shares == {share_of(wanted, 0, 2), share_of(wanted, 1, 2)}
    for name, replica in replicas.items():
        assert {model["key"] for model in replica["models"]} == set(replica["share"]), name
    assert all(replica["config_error"] is None for replica in replicas.values())


def test_a_model_is_loaded_on_as_many_replicas_as_asked(fleet: Server) -> None:
    """More than there are is no error, and the answer says so."""
    one = _post(fleet, "components-n/load")
    assert len(one["replicas"]) == one["wanted"] == 1
    assert set(one["replicas"]) <= _holding(replicas_of(fleet), "components-n@1")
    both = _post(fleet, "components-n/load?copies=5")
    assert len(both["replicas"]) == 2
    assert both["shortfall"] == "there are 2 replicas now"
    assert _holding(replicas_of(fleet), "components-n@1") == set(both["replicas"])
    assert _pinned(replicas_of(fleet), "components-n@1") == set()


def test_a_lost_copy_is_restored(fleet: Server) -> None:
    """Two copies are pinned; a replica is killed; its successor holds the second one."""
    answer = _post(fleet, "codes-n/pin?copies=2")
    before = replicas_of(fleet)
    assert _holding(before, PIN) == _pinned(before, PIN) == set(answer["replicas"]) == set(before)
    killed = min(before)
    os.kill(before[killed]["pid"], signal.SIGKILL)
    after = _until(
        fleet,
        lambda now: killed not in now and len(_holding(now, PIN) & _pinned(now, PIN)) == 2,
        "a second copy",
    )
    assert set(before) & set(after) == set(before) - {killed}


def test_more_replicas_take_no_more_copies_than_wanted(fleet: Server) -> None:
    """A replica that comes later learns of the pin, and the copies stay where they are."""
    before = replicas_of(fleet)
    fleet.config["applications"][0]["deployments"][0]["num_replicas"] = 3
    fleet.reconfigure(**FLEET_USER_CONFIG)
    after = _until(
        fleet,
        lambda now: len(now) == 3 and all(replica["pins"] for replica in now.values()),
        "a third replica that knows",
    )
    assert _pinned(after, PIN) == _pinned(before, PIN)
    assert {now["pid"] for now in after.values()} > {old["pid"] for old in before.values()}
    assert fleet.client.get("/v1/models/codes-n").json()["wanted"] == 2


def test_a_lost_copy_is_restored_at_once_where_there_is_another_replica(fleet: Server) -> None:
    """Without waiting for a successor: the third replica takes it."""
    before = replicas_of(fleet)
    killed = min(_pinned(before, PIN))
    (free,) = set(before) - _pinned(before, PIN)
    os.kill(before[killed]["pid"], signal.SIGKILL)
    _until(
        fleet,
        lambda now: killed not in now and free in _holding(now, PIN) & _pinned(now, PIN),
        "a copy on the free replica",
    )
    _until(fleet, lambda now: len(now) == 3, "the successor")
    assert len(_pinned(replicas_of(fleet), PIN)) == 2


def test_pins_everywhere_and_unload(fleet: Server) -> None:
    """`all` takes every replica; unload takes pins and copies back on every replica."""
    assert len(_post(fleet, "codes-n/pin?copies=all")["replicas"]) == 3
    replicas = replicas_of(fleet)
    assert _pinned(replicas, PIN) == _holding(replicas, PIN) == set(replicas)
    assert _post(fleet, "codes-n/unload")["replicas"] == 3
    replicas = replicas_of(fleet)
    assert _pinned(replicas, PIN) == _holding(replicas, PIN) == set()
    assert fleet.client.get("/v1/models/codes-n").json()["wanted"] == 0
    assert _post(fleet, "codes-n/unpin")["was"] == 0


def test_copies_in_the_user_config_spread_without_a_restart(fleet: Server) -> None:
    """A pin with copies is held by as many, one without by all, and both end with the config."""
    before = {replica["pid"] for replica in replicas_of(fleet).values()}
    pinned: list[object] = [{"model": "codes-n", "copies": 2}, "fasteners-s"]
    fleet.reconfigure(**FLEET_USER_CONFIG, pinned=pinned)
    _until(
        fleet,
        lambda now: (
            len(now) == 3
            and len(_pinned(now, PIN) & _holding(now, PIN)) == 2
            and len(_pinned(now, PIN)) == 2
            and len(_pinned(now, "fasteners-s@1") & _holding(now, "fasteners-s@1")) == 3
        ),
        "both pins",
    )
    fleet.reconfigure(**FLEET_USER_CONFIG)
    after = _until(
        fleet,
        lambda now: len(now) == 3 and not any(replica["pinned"] for replica in now.values()),
        "no pins",
    )
    assert {replica["pid"] for replica in after.values()} == before
