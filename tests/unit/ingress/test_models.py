"""The model routes: listing, details, load and unload."""

from pathlib import Path

import httpx
import pytest

from serve_app.errors import Failure, ModelBrokenError, OverloadedError
from tests.unit.ingress.fakes import FakeBackend


async def test_the_list_tells_what_exists_and_where_it_is_resident(
    client: httpx.AsyncClient,
) -> None:
    """Card, file and residency of each version, sorted."""
    answer = await client.get("/v1/models")
    assert answer.status_code == 200
    content = answer.json()
    assert content["total"] == 3
    assert [model["key"] for model in content["models"]] == ["codes@1", "parts@1", "parts@2"]
    assert content["models"][2] == {
        "name": "parts",
        "version": "2",
        "key": "parts@2",
        "description": "Screws and nuts",
        "task": "detect",
        "classes": ["bolt", "nut"],
        "imgsz": 320,
        "source": "folder",
        "format": "pt",
        "size_bytes": 7,
        "resident": [{"replica_id": "r1", "bytes": 1000, "state": "ready"}],
    }
    assert content["models"][0]["resident"] == []


async def test_the_list_comes_in_pages(client: httpx.AsyncClient) -> None:
    """`total` counts all pages; a page past the end is empty."""
    answer = (await client.get("/v1/models?limit=1&offset=1")).json()
    assert [model["key"] for model in answer["models"]] == ["parts@1"]
    assert answer["total"] == 3
    assert (await client.get("/v1/models?offset=99")).json() == {"models": [], "total": 3}


async def test_the_list_does_not_depend_on_replicas(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """Unknown residency is null, which is not the same as nowhere."""
    backend.error = OverloadedError("no replica")
    answer = await client.get("/v1/models")
    assert answer.status_code == 200
    assert answer.json()["models"][0]["resident"] is None


async def test_one_model_is_shown_with_its_card(client: httpx.AsyncClient) -> None:
    """A bare name means the highest version."""
    answer = await client.get("/v1/models/parts")
    content = answer.json()
    assert content["key"] == answer.headers["x-model-id"] == "parts@2"
    assert content["versions"] == ["1", "2"]
    assert content["evaluation"] == {"map50": 0.97}
    assert (await client.get("/v1/models/parts@1")).json()["version"] == "1"
    assert (await client.get("/v1/models/part")).json()["code"] == "model_not_found"


async def test_a_broken_card_breaks_nothing(client: httpx.AsyncClient, repository: Path) -> None:
    """The model is listed as if it had none."""
    (repository / "codes/1/model.yaml").write_text("task: [")
    content = (await client.get("/v1/models/codes")).json()
    assert (content["task"], content["classes"]) == (None, [])


async def test_load_answers_once_resident(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The reference is resolved first; what fails is told."""
    answer = await client.post("/v1/models/parts/load?timeout_s=2")
    assert answer.status_code == 200
    assert answer.json()["model"] == "parts@2"
    assert answer.json()["state"] == "resident"
    assert [str(key) for key in backend.loaded] == ["parts@2"]
    backend.error = ModelBrokenError("no YOLO")
    assert (await client.post("/v1/models/parts/load")).status_code == 424
    assert (await client.post("/v1/models/none/load")).status_code == 404


async def test_load_ends_at_its_deadline(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """A source that hangs does not hold the client for ever."""
    backend.delay_s = 30
    answer = await client.post("/v1/models/parts/load?timeout_s=0.05")
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert "loading parts@2" in answer.json()["detail"]
    assert backend.cancelled == 1


async def test_load_tells_where_and_whether_it_is_as_often_as_wanted(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """One copy goes where the router says; more than there are replicas is no error."""
    answer = (await client.post("/v1/models/parts/load")).json()
    assert answer.pop("took_ms") >= 0
    assert answer == {"model": "parts@2", "state": "resident", "wanted": 1, "replicas": ["r1"]}
    answer = (await client.post("/v1/models/parts/load?copies=3")).json()
    assert (answer["wanted"], answer["replicas"]) == (3, ["r1"])
    assert answer["shortfall"] == "there is 1 replica now"
    answer = (await client.post("/v1/models/parts/load?copies=all")).json()
    assert (answer["wanted"], answer["replicas"]) == ("all", ["r1"])
    assert "shortfall" not in answer
    assert backend.orders == [], "nothing is pinned by a load"


@pytest.mark.parametrize("copies", ["0", "-1", "abc", "257", "1.5", "", "1_0", "ALL"])
@pytest.mark.parametrize("action", ["load", "pin"])
async def test_a_number_of_copies_that_is_none_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, action: str, copies: str
) -> None:
    """422, and the text tells what is possible."""
    answer = await client.post(f"/v1/models/parts/{action}", params={"copies": copies})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert "expected a whole number from 1 to 256, or all" in answer.json()["detail"]
    assert backend.loaded == []


async def test_a_pin_is_loaded_told_and_shown(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """GET shows the wanted copies until unpin; unpin without a pin changes nothing."""
    assert (await client.get("/v1/models/parts")).json()["wanted"] == 0
    answer = (await client.post("/v1/models/parts/pin?copies=2")).json()
    assert (answer["state"], answer["wanted"], answer["replicas"]) == ("pinned", 2, ["r1"])
    assert [str(key) for key in backend.loaded] == ["parts@2"]
    assert backend.orders[-1].pinned == {"r1": {"parts@2"}}
    assert (await client.get("/v1/models/parts")).json()["wanted"] == 2
    assert (await client.get("/v1/models/parts@1")).json()["wanted"] == 0
    await client.post("/v1/models/parts/pin?copies=all")
    assert (await client.get("/v1/models/parts")).json()["wanted"] == "all"

    answer = (await client.post("/v1/models/parts/unpin")).json()
    assert answer == {"model": "parts@2", "state": "unpinned", "was": "all"}
    assert backend.orders[-1].pinned == {"r1": frozenset()}
    told = len(backend.orders)
    assert (await client.post("/v1/models/parts/unpin")).json()["was"] == 0
    assert len(backend.orders) == told
    assert (await client.get("/v1/models/parts")).json()["wanted"] == 0


async def test_what_cannot_be_loaded_is_not_pinned(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """507 for a model that can never fit, 404 for one that is unknown."""
    backend.failure = Failure("model_exceeds_budget", "more than the whole memory budget")
    answer = await client.post("/v1/models/parts/pin")
    assert (answer.status_code, answer.json()["code"]) == (507, "model_exceeds_budget")
    assert (await client.post("/v1/models/none/pin")).status_code == 404
    assert (await client.post("/v1/models/none/unpin")).status_code == 404
    assert backend.orders == []
    assert (await client.get("/v1/models/parts")).json()["wanted"] == 0


async def test_unload_unpins(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The replicas are told before they are to let it go."""
    await client.post("/v1/models/parts/pin")
    answer = await client.post("/v1/models/parts/unload")
    assert answer.json() == {"model": "parts@2", "state": "unloaded", "replicas": 1}
    assert backend.orders[-1].pinned == {"r1": frozenset()}
    assert [str(key) for key in backend.unloaded] == ["parts@2"]
    assert (await client.get("/v1/models/parts")).json()["wanted"] == 0


async def test_unload_tells_where_it_was(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The count of replicas that gave memory back."""
    answer = await client.post("/v1/models/parts@1/unload")
    assert answer.json() == {"model": "parts@1", "state": "unloaded", "replicas": 1}
    assert [str(key) for key in backend.unloaded] == ["parts@1"]
