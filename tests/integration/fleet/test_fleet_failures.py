"""What breaks under load: a replica is killed, the model folder vanishes. No request is lost."""

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import httpx

from tests.integration.server import Server, replicas_of, wait_until

MODELS = ("fasteners-n", "components-n")
CLIENTS = 4


class Load:
    """A few clients that ask all the time, and what they were answered."""

    def __init__(self, server: Server, image: bytes) -> None:
        self.answers: Counter[str] = Counter()
        self._server = server
        self._image = image
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self._server.url, timeout=60.0) as client:
            while not self._ending.is_set():
                url = f"/v1/models/{MODELS[number % len(MODELS)]}/predict"
                try:
                    answer = client.post(url, content=self._image)
                    outcome = "200" if answer.status_code == 200 else answer.text
                except httpx.HTTPError as error:
                    outcome = repr(error)
                self.answers[outcome] += 1


def test_a_replica_that_is_killed_costs_no_request(fleet: Server, scenes: dict[str, bytes]) -> None:
    """What it was working on is answered by the other; a new one takes its place."""
    with Load(fleet, scenes["fasteners-1"]) as load:
        wait_until(lambda: load.answers["200"] > 50, what="some answers")
        replicas = replicas_of(fleet).values()
        # The one that holds most, so that it is surely at work.
        victim = max(replicas, key=lambda replica: int(replica["used_bytes"]))["pid"]
        os.kill(victim, signal.SIGKILL)

        def replaced() -> bool:
            pids = {replica["pid"] for replica in replicas_of(fleet).values()}
            return victim not in pids and len(pids) == len(replicas)

        wait_until(replaced, 60, "a new replica")
        count = load.answers["200"]
        wait_until(lambda: load.answers["200"] > count + 50, what="some more answers")
    assert set(load.answers) == {"200"}, load.answers


def test_a_model_folder_that_vanishes_leaves_resident_models_alone(
    fleet: Server, fleet_folder: Path, scenes: dict[str, bytes]
) -> None:
    """Others are refused with a reason and set aside; once it is back an operator's load works."""
    image = scenes["fasteners-1"]
    for name in MODELS:
        assert fleet.predict(name, image).status_code == 200
    assert fleet.client.get("/v1/models/codes-n").status_code == 200
    assert fleet.client.post("/v1/models/codes-n/unload").status_code == 200
    away = fleet_folder.with_name("away")
    fleet_folder.rename(away)
    try:
        with Load(fleet, image) as load:
            refused = [fleet.predict("codes-n", image) for _ in range(8)]
            wait_until(lambda: load.answers.total() > 50, what="answers meanwhile")
        assert set(load.answers) == {"200"}, load.answers
        codes = {answer.json()["code"] for answer in refused}
        assert codes == {"source_unavailable"}, codes
        assert any("set aside" in answer.json()["detail"] for answer in refused)
        assert int(refused[-1].headers["retry-after"]) >= 1
        listed = [one for replica in replicas_of(fleet).values() for one in replica["set_aside"]]
        assert {one["key"] for one in listed} == {"codes-n@1"}
    finally:
        away.rename(fleet_folder)
    loaded = fleet.client.post("/v1/models/codes-n/load")
    assert loaded.status_code == 200, loaded.text
    assert fleet.predict("codes-n", image).status_code == 200
