"""Health, replicas and the reference page."""

import re
from html.parser import HTMLParser

import httpx

from serve_app.errors import ERRORS, OverloadedError
from serve_app.ingress.parameters import WITH_MODEL
from serve_app.ingress.schemas import SCHEMAS
from tests.unit.ingress.fakes import FakeBackend


async def test_live_as_long_as_it_answers(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """Liveness does not ask the replicas: a restart would not help them."""
    backend.error = OverloadedError("no replica")
    assert (await client.get("/health/live")).json() == {"status": "live"}


async def test_ready_when_the_backend_is(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """No and an error both mean not yet."""
    assert (await client.get("/health/ready")).json() == {"status": "ready"}
    backend.is_ready = False
    answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert answer.headers["retry-after"] == "1"
    backend.error = OverloadedError("no replica")
    answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()["detail"]) == (503, "no replica")


async def test_replicas_show_budget_and_models(client: httpx.AsyncClient) -> None:
    """Every field of the report is in the answer, and described."""
    replica = (await client.get("/v1/replicas")).json()["replicas"][0]
    assert replica["budget_bytes"] == 10_000
    assert replica["models"][0]["key"] == "parts@2"
    assert set(replica) == set(SCHEMAS["Replica"]["properties"])
    assert set(replica["models"][0]) == set(SCHEMAS["ReplicaModel"]["properties"])


async def test_the_reference_page_needs_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    """A machine without a network sees all of it: no script, no style sheet, no font."""
    answer = await client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "<script" not in answer.text
    assert not re.search(r"""(?:src|href)=['"](?:https?:)?//""", answer.text)
    for text in ("/v1/models/{ref}/predict", "max_det", "multipart/form-data", "model_broken"):
        assert text in answer.text


async def test_the_reference_page_is_well_formed(client: httpx.AsyncClient) -> None:
    """Every tag that opens closes, and every link leads somewhere."""
    page = _Page()
    page.feed((await client.get("/docs")).text)
    assert page.open_tags == []
    assert page.links <= page.ids


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.links: set[str | None] = set()
        self.ids: set[str | None] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open_tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            if name == "href" and (value or "").startswith("#"):
                self.links.add((value or "")[1:])

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


async def test_the_description_is_complete(client: httpx.AsyncClient) -> None:
    """Parameters, both kinds of body, all problems; every schema that is referred to exists."""
    document = (await client.get("/openapi.json")).json()
    predict = document["paths"]["/v1/predict"]["post"]
    names = {parameter["name"] for parameter in predict["parameters"]}
    assert names == {parameter.name for parameter in WITH_MODEL}
    assert {"image/jpeg", "multipart/form-data"} <= set(predict["requestBody"]["content"])
    statuses = {str(error.status) for error in ERRORS.values()}
    assert statuses | {"200"} == set(predict["responses"])
    problem = predict["responses"]["404"]["content"]["application/problem+json"]
    assert problem["schema"]["$ref"].endswith("/Problem")
    referred = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert referred <= set(document["components"]["schemas"])
    assert "/v1/models/{ref}/predict" in document["paths"]


async def test_answers_are_as_described(client: httpx.AsyncClient) -> None:
    """The fields of the answers and of their schemas are the same."""
    models = (await client.get("/v1/models")).json()
    assert set(models) == set(SCHEMAS["ModelList"]["properties"])
    assert set(models["models"][0]) == set(SCHEMAS["Model"]["properties"])
    details = (await client.get("/v1/models/parts")).json()
    extra = set(SCHEMAS["ModelDetails"]["allOf"][1]["properties"])
    assert set(details) == set(SCHEMAS["Model"]["properties"]) | extra
    actions = {"load": "Placed", "pin": "Placed", "unpin": "Unpinned", "unload": "Unloaded"}
    for action, schema in actions.items():
        answer = (await client.post(f"/v1/models/parts/{action}")).json()
        assert set(answer) == set(SCHEMAS[schema]["required"])
