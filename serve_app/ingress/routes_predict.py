"""POST .../predict: from the client's bytes to the backend and back."""

import asyncio
from collections.abc import Iterable

from fastapi import APIRouter, Request, Response

from serve_app.errors import InvalidParameterError
from serve_app.ingress import openapi
from serve_app.ingress.body import PredictBody, check_headers, read_body
from serve_app.ingress.images import check_image
from serve_app.ingress.limits import Deadline, Holding, IngressLimits
from serve_app.ingress.parameters import (
    COMMON,
    WITH_MODEL,
    Pairs,
    Parameter,
    PredictOptions,
    parse_options,
)
from serve_app.ingress.proxy_headers import MODEL_HEADER
from serve_app.ingress.responses import encode_answer, predict_headers
from serve_app.ingress.services import Services
from serve_app.types import ModelKey, PredictRequest, PredictResult

_MANY_FINDINGS = 100
"""More than this are turned into JSON in a thread: their outlines may be long."""

# Clients in the field spell Ray Serve's header both ways; behind our proxy it has another name.
_MODEL_HEADERS = ("serve_multiplexed_model_id", "serve-multiplexed-model-id", MODEL_HEADER)


def predict_router() -> APIRouter:
    """Return the predict routes."""
    router = APIRouter(tags=["Predict"])
    router.add_api_route(
        "/v1/models/{ref}/predict",
        predict,
        methods=["POST"],
        summary="Find things in pictures with one model",
        **openapi.predict_route(COMMON, with_reference=True),
    )
    router.add_api_route(
        "/v1/predict",
        predict_with_model,
        methods=["POST"],
        summary="The same, with the model as a parameter",
        **openapi.predict_route(WITH_MODEL, with_reference=False),
    )
    return router


async def predict(request: Request) -> Response:
    """The body is one picture, or a form with one or more `file` parts.

    Parameters may stand in the query or in the form.
    """
    services = Services.of(request)
    deadline, given = _begin(request, services, COMMON)
    # Looked up before the body is read: an unknown name costs no upload.
    key = await services.key_of(request.path_params["ref"], deadline)
    with services.in_flight.hold() as holding:
        body, options = await _read(request, services.limits, holding, deadline, COMMON, given)
        return await _answer(services, deadline, key, body, options)


async def predict_with_model(request: Request) -> Response:
    """The model is named by `model`, by `model_type`, or by the header of Ray Serve."""
    services = Services.of(request)
    named = [("model", request.headers[name]) for name in _MODEL_HEADERS if name in request.headers]
    deadline, given = _begin(request, services, WITH_MODEL, named)
    with services.in_flight.hold() as holding:
        body, options = await _read(request, services.limits, holding, deadline, WITH_MODEL, given)
        if options.model is None:
            raise InvalidParameterError(
                "no model is named: give model=NAME in the query or the form, "
                "or use /v1/models/NAME/predict"
            )
        key = await services.key_of(options.model, deadline)
        return await _answer(services, deadline, key, body, options)


def _begin(
    request: Request, services: Services, known: tuple[Parameter, ...], more: Pairs = ()
) -> tuple[Deadline, Pairs]:
    """Refuse what can be refused by headers and query; return the deadline, and what was given."""
    limits = services.limits
    deadline = Deadline(limits.request_timeout_s)
    services.backlog.check()  # first, since it knows when to come again
    check_headers(request, limits, services.in_flight)
    given = [*more, *request.query_params.multi_items()]
    # Parsed before anything is waited for: a wrong query costs no upload, a short time holds.
    deadline.shorten(parse_options(given, known, limits.request_timeout_s).timeout_s)
    return deadline, given


async def _read(
    request: Request,
    limits: IngressLimits,
    holding: Holding,
    deadline: Deadline,
    known: tuple[Parameter, ...],
    given: Pairs,
) -> tuple[PredictBody, PredictOptions]:
    """Return the pictures and the options, all checked."""
    body = await deadline.bound(read_body(request, limits, holding), "reading the body")
    options = parse_options([*given, *body.fields], known, limits.request_timeout_s)
    deadline.shorten(options.timeout_s)
    if options.annotate and len(body.uploads) > 1:
        raise InvalidParameterError(
            f"format='image' answers with one picture, but {len(body.uploads)} were sent: "
            "send one, or ask for format=json"
        )
    # Sixteen headers made to be slow take Pillow some 0.1 s: not on the event loop.
    check = asyncio.to_thread(_check_images, body, limits.max_image_pixels)
    await deadline.bound(check, "checking the pictures' headers")
    return body, options


def _check_images(body: PredictBody, max_pixels: int) -> None:
    for upload in body.uploads:
        check_image(upload.data, max_pixels, upload.label)


async def _answer(
    services: Services,
    deadline: Deadline,
    key: ModelKey,
    body: PredictBody,
    options: PredictOptions,
) -> Response:
    request = PredictRequest(
        key=key,
        images=tuple(upload.data for upload in body.uploads),
        params=options.params,
        timeout_s=deadline.left_s,
        annotate=options.annotate,
    )
    with services.backlog.call(key):
        result = await deadline.bound(services.backend.predict(request), f"predicting with {key}")
    headers = predict_headers(result)
    if options.annotate:
        return Response(_annotated(result), headers=headers, media_type="image/jpeg")
    content = await _encoded(result, options, deadline.elapsed_s)
    return Response(content, headers=headers, media_type="application/json")


def _annotated(result: PredictResult) -> bytes:
    picture = result.images[0].annotated
    if picture is None:
        raise RuntimeError(f"the backend did not draw the findings of {result.key}")
    return picture


async def _encoded(result: PredictResult, options: PredictOptions, elapsed_s: float) -> bytes:
    if _count(result) <= _MANY_FINDINGS:
        return encode_answer(result, normalize=options.normalize, elapsed_s=elapsed_s)
    return await asyncio.to_thread(
        encode_answer, result, normalize=options.normalize, elapsed_s=elapsed_s
    )


def _count(result: PredictResult) -> int:
    counts: Iterable[int] = (len(image.class_id) for image in result.images)
    return sum(counts)
