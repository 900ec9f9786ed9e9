"""Errors: every one is a problem document with a stable code and a request id."""

import logging
import uuid

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from starlette.types import Message

from serve_app.errors import ERRORS
from tests.unit.ingress.fakes import FakeBackend, picture

URL = "/v1/models/parts/predict"


@pytest.mark.parametrize("code", list(ERRORS))
async def test_every_error_is_a_problem_document(
    client: httpx.AsyncClient, backend: FakeBackend, code: str
) -> None:
    """Status, type and code come from the class; 503 says when to come back."""
    backend.error = ERRORS[code]("the reason")
    answer = await client.post(URL, content=picture(), headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == ERRORS[code].status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": f"urn:serve-app:problem:{code}",
        "title": ERRORS[code].title,
        "status": ERRORS[code].status,
        "detail": "the reason",
        "code": code,
        "request_id": "mine-1",
    }
    assert ("retry-after" in answer.headers) == (ERRORS[code].status == 503)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/models/", 404, "not_found"),
        ("GET", "/v1/models/a/b/c", 404, "not_found"),
        ("DELETE", "/v1/models/parts", 405, "method_not_allowed"),
        ("GET", "/v1/models/parts/predict", 405, "method_not_allowed"),
        ("BREW", "/v1/models", 405, "method_not_allowed"),
        ("HEAD", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_what_the_framework_refuses_is_a_problem_too(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    """No answer of FastAPI's own shape gets out."""
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    if method != "HEAD":
        assert answer.json()["code"] == code
    assert ("allow" in answer.headers) == (status == 405)


async def test_a_malformed_host_is_harmless(client: httpx.AsyncClient) -> None:
    """Starlette builds URLs of the Host header, which a client may fill with anything."""
    answer = await client.get("/nothing", headers={"Host": "["})
    assert answer.status_code == 404
    assert (await client.get("/docs", headers={"Host": "["})).status_code == 200
    assert (await client.get("/openapi.json", headers={"Host": "["})).status_code == 200


async def test_routes_that_others_add_answer_with_problems_too(
    api: FastAPI, client: httpx.AsyncClient
) -> None:
    """FastAPI's own validation and HTTP errors are translated, whoever causes them."""

    async def typed(number: int) -> int:
        raise HTTPException(400 + number, "no tea")

    api.add_api_route("/typed", typed)
    answer = await client.get("/typed?number=x")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert answer.json()["detail"].startswith("query.number: ")
    answer = await client.get("/typed?number=18")
    assert (answer.status_code, answer.json()["detail"]) == (418, "no tea")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_the_server_can_start_the_application(api: FastAPI) -> None:
    """The guard lets through what is no HTTP request."""
    incoming: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    await api({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_client_that_leaves_during_its_upload_is_no_defect(
    api: FastAPI, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody reads the answer, but the log must not cry either."""
    incoming: list[Message] = [
        {"type": "http.request", "body": b"\xff\xd8", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "headers": []}
    await api(scope, receive, send)
    assert sent[0]["status"] == 499
    assert not backend.predicted
    assert not caplog.records


async def test_a_time_out_of_the_backend_is_not_the_clients_deadline(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """Only our own clock gives 504; anything else is a defect to be seen."""
    backend.error = TimeoutError()
    answer = await client.post(URL, content=picture())
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")


async def test_a_defect_is_logged_and_keeps_its_secret(
    client: httpx.AsyncClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets the request id to name, the log gets the traceback."""
    backend.error = RuntimeError("password=1234")
    with caplog.at_level(logging.ERROR):
        answer = await client.post(URL, content=picture(), headers={"X-Request-Id": "r-7"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "password" not in answer.text
    assert "r-7" in answer.json()["detail"]
    assert "request r-7 failed" in caplog.text
    assert "password" in caplog.text


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "ä", "a\tb", "<script>", "a/b"])
async def test_an_odd_request_id_is_replaced(client: httpx.AsyncClient, sent: str) -> None:
    """It ends up in logs and headers: only plain ones are taken over."""
    headers = [(b"x-request-id", sent.encode("latin-1"))]
    answer = await client.get("/health/live", headers=headers)
    assert str(uuid.UUID(answer.headers["x-request-id"])) == answer.headers["x-request-id"]


async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient) -> None:
    """So that a client finds its request in the server's log."""
    answer = await client.get("/health/live", headers={"X-Request-Id": "Order-7_a.b"})
    assert answer.headers["x-request-id"] == "Order-7_a.b"
