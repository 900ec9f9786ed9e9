"""Health for load balancers, the replicas' state, and the API's own description."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from serve_app.errors import ServeAppError
from serve_app.ingress import openapi
from serve_app.ingress.limits import Deadline
from serve_app.ingress.problems import Problem, json_response, request_id
from serve_app.ingress.reference_page import render
from serve_app.ingress.services import Services, query_values

_READY_TIMEOUT_S = 5.0


def status_router() -> APIRouter:
    """Return the routes that describe the server itself."""
    router = APIRouter(tags=["Server"])
    router.add_api_route(
        "/v1/replicas",
        list_replicas,
        summary="Show every replica, its budget and its models",
        **openapi.route(200, "ReplicaList", codes=openapi.ASK_CODES),
    )
    router.add_api_route(
        "/health/live",
        live,
        summary="Is the server running?",
        **openapi.route(200, "Health"),
    )
    router.add_api_route(
        "/health/ready",
        ready,
        summary="Can it answer predict calls now?",
        **openapi.route(200, "Health", codes=(openapi.NOT_READY,)),
    )
    router.add_api_route("/docs", reference, include_in_schema=False)
    return router


async def list_replicas(request: Request) -> Response:
    """Memory is counted in bytes on the replica's device."""
    query_values(request)
    reports = await Services.of(request).reports()
    return json_response({"replicas": [asdict(report) for report in reports]})


async def live() -> Response:
    """Yes, as long as this answers."""
    return json_response({"status": "live"})


async def ready(request: Request) -> Response:
    """503 while no replica is up."""
    backend = Services.of(request).backend
    try:
        is_ready = await Deadline(_READY_TIMEOUT_S).bound(backend.ready(), "asking the replicas")
        reason = "no replica is up yet"
    except ServeAppError as error:
        is_ready, reason = False, error.detail
    if is_ready:
        return json_response({"status": "ready"})
    problem = Problem(503, openapi.NOT_READY, "Not ready", reason, {"Retry-After": "1"})
    return problem.response(request_id(request))


async def reference(request: Request) -> Response:
    """The API's reference as one page that needs nothing from elsewhere."""
    base_url = str(request.base_url).rstrip("/")
    return HTMLResponse(render(request.app.openapi(), base_url))
