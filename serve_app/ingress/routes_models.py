"""The models that exist, and bringing them into memory and out of it."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from serve_app.fleet.keeper import Placed
from serve_app.ingress import openapi
from serve_app.ingress.limits import Deadline
from serve_app.ingress.parameters import COPIES, LIMIT, MAX_PAGE, OFFSET, TIMEOUT, timeout_of
from serve_app.ingress.problems import json_response
from serve_app.ingress.services import Services, query_values
from serve_app.types import Copies, ModelKey, ModelSpec, ReplicaReport

Residents = dict[str, list[dict[str, Any]]] | None


def models_router() -> APIRouter:
    """Return the routes below /v1/models that do not predict."""
    router = APIRouter(tags=["Models"])
    router.add_api_route(
        "/v1/models",
        list_models,
        summary="List the registered models",
        **openapi.route(200, "ModelList", LIMIT, OFFSET, codes=("deadline_exceeded",)),
    )
    router.add_api_route(
        "/v1/models/{ref}",
        show_model,
        summary="Show one model",
        **openapi.route(200, "ModelDetails", reference=True, codes=openapi.LOOK_CODES),
    )
    router.add_api_route(
        "/v1/models/{ref}/load",
        load_model,
        methods=["POST"],
        summary="Load a model; answered once it is in memory",
        **openapi.route(200, "Placed", COPIES, TIMEOUT, reference=True, codes=openapi.WORK_CODES),
    )
    router.add_api_route(
        "/v1/models/{ref}/pin",
        pin_model,
        methods=["POST"],
        summary="Load a model and keep it in memory",
        **openapi.route(200, "Placed", COPIES, TIMEOUT, reference=True, codes=openapi.WORK_CODES),
    )
    router.add_api_route(
        "/v1/models/{ref}/unpin",
        unpin_model,
        methods=["POST"],
        summary="Let a pinned model be evicted again",
        **openapi.route(200, "Unpinned", reference=True, codes=openapi.ASK_CODES),
    )
    router.add_api_route(
        "/v1/models/{ref}/unload",
        unload_model,
        methods=["POST"],
        summary="Take a model out of memory once nobody uses it",
        **openapi.route(200, "Unloaded", TIMEOUT, reference=True, codes=openapi.ASK_CODES),
    )
    return router


async def list_models(request: Request) -> Response:
    """Sorted by name, then version from the lowest to the highest.

    `resident` is null when the replicas cannot be asked.
    """
    services = Services.of(request)
    page = query_values(request, LIMIT, OFFSET)
    deadline = Deadline(services.limits.request_timeout_s)
    specs = await deadline.bound(services.registry.list(), "listing the models")
    residents = _residents(await services.reports_or_none())
    start = page.get("offset", 0)
    shown = specs[start : start + page.get("limit", MAX_PAGE)]
    return json_response(
        {"models": [_summary(spec, residents) for spec in shown], "total": len(specs)}
    )


async def show_model(request: Request) -> Response:
    """The summary that the list has, and all that the model's card says."""
    services = Services.of(request)
    query_values(request)
    deadline = Deadline(services.limits.request_timeout_s)
    key = await services.key_of(request.path_params["ref"], deadline)
    spec = await deadline.bound(services.registry.spec(key), f"looking for {key}")
    reports = await services.reports_or_none()
    wanted = None if reports is None else services.fleet.wanted(reports).get(str(key), 0)
    details = {
        "versions": list(services.registry.versions(key.name)),
        "wanted": None if reports is None else _in_words(wanted),
        "architecture": spec.card.architecture,
        "training": dict(spec.card.training),
        "evaluation": dict(spec.card.evaluation),
        "license": spec.card.license,
    }
    summary = _summary(spec, _residents(reports))
    return json_response({**summary, **details}, headers={"X-Model-Id": str(key)})


async def load_model(request: Request) -> Response:
    """It may be evicted again. An error tells why no replica can load it.

    On fewer replicas than asked for is no error: `replicas` and `shortfall` tell.
    """
    return await _place(request, Services.of(request).fleet.load, "resident")


async def pin_model(request: Request) -> Response:
    """It is not evicted, and the number of copies is kept as replicas come and go, until unpin.

    On fewer replicas than asked for is no error: the rest follows once there are more. Where no
    replica can load it, it is not pinned, and the error tells why.
    """
    return await _place(request, Services.of(request).fleet.pin, "pinned")


async def unpin_model(request: Request) -> Response:
    """It stays in memory until its room is needed; `was` tells how many copies were wanted."""
    services = Services.of(request)
    query_values(request)
    deadline = Deadline(services.limits.request_timeout_s)
    key = await services.key_of(request.path_params["ref"], deadline)
    was = await deadline.bound(services.fleet.unpin(key), f"unpinning {key}")
    return json_response(
        {"model": str(key), "state": "unpinned", "was": _in_words(was)},
        headers={"X-Model-Id": str(key)},
    )


async def unload_model(request: Request) -> Response:
    """It is unpinned first. `replicas` tells on how many it was in memory; 0 is no error."""
    services = Services.of(request)
    limit_s = services.limits.request_timeout_s
    deadline = Deadline(timeout_of(query_values(request, TIMEOUT), limit_s))
    key = await services.key_of(request.path_params["ref"], deadline)
    count = await deadline.bound(services.fleet.unload(key, deadline.left_s), f"unloading {key}")
    return json_response(
        {"model": str(key), "state": "unloaded", "replicas": int(count)},
        headers={"X-Model-Id": str(key)},
    )


async def _place(
    request: Request, place: Callable[[ModelKey, Copies, float], Awaitable[Placed]], state: str
) -> Response:
    services = Services.of(request)
    values = query_values(request, COPIES, TIMEOUT)
    deadline = Deadline(timeout_of(values, services.limits.request_timeout_s))
    key = await services.key_of(request.path_params["ref"], deadline)
    copies: Copies = values.get(COPIES.name, 1)
    placed = await deadline.bound(place(key, copies, deadline.left_s), f"loading {key}")
    answer: dict[str, Any] = {
        "model": str(key),
        "state": state,
        "wanted": _in_words(placed.wanted),
        "replicas": placed.replicas,
    }
    if placed.shortfall is not None:
        answer["shortfall"] = placed.shortfall
    answer["took_ms"] = round(deadline.elapsed_s * 1000, 1)
    return json_response(answer, headers={"X-Model-Id": str(key)})


def _in_words(copies: Copies) -> int | str:
    return "all" if copies is None else copies


def _residents(reports: list[ReplicaReport] | None) -> Residents:
    """Return where each model key is in memory."""
    if reports is None:
        return None
    residents: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        for model in report.models:
            residents.setdefault(model.key, []).append(
                {"replica_id": report.replica_id, "bytes": model.bytes, "state": model.state}
            )
    return residents


def _summary(spec: ModelSpec, residents: Residents) -> dict[str, Any]:
    key, card = str(spec.key), spec.card
    return {
        "name": spec.key.name,
        "version": spec.key.version,
        "key": key,
        "description": card.description,
        "task": None if card.task is None else str(card.task),
        "classes": list(card.classes),
        "imgsz": card.imgsz,
        "source": spec.source,
        "format": str(spec.format),
        "size_bytes": spec.size_bytes,
        "resident": None if residents is None else residents.get(key, []),
    }
