"""Describes the routes for /openapi.json; FastAPI cannot, since they parse requests themselves."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI

from serve_app.errors import ERRORS
from serve_app.ingress.parameters import Parameter
from serve_app.ingress.problems import MEDIA_TYPE
from serve_app.ingress.schemas import SCHEMAS

DESCRIPTION = """\
Serves a whole fleet of YOLO models on demand: any registered model can be asked for at any time,
only the ones in use hold memory.

Every error is a problem document (RFC 9457, `application/problem+json`) with a stable `code`.
Every answer carries `X-Request-Id`, the client's own where it sent one.
"""

NOT_READY = "not_ready"
LOOK_CODES = ("source_unavailable", "deadline_exceeded")
ASK_CODES = ("overloaded", *LOOK_CODES)
WORK_CODES = (
    "model_broken",
    "overloaded",
    "source_unavailable",
    "deadline_exceeded",
    "model_exceeds_budget",
)
_BODY_CODES = ("image_too_large", "unsupported_media_type", "invalid_image")
_HEADERS = {
    "X-Model-Id": "The version that answered, name@version.",
    "X-Model-Cold-Start": "true when the request had to wait for the model to be loaded.",
    "X-Model-Load-Time-Ms": "How long that took; absent otherwise.",
    "Server-Timing": "Milliseconds of queue, load, preprocess, inference and postprocess.",
    "X-Request-Id": "The id under which the server logs this request.",
}
_IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")
_BYTES = {"type": "string", "format": "binary"}


def route(
    status: int,
    schema: str,
    *parameters: Parameter,
    reference: bool = False,
    codes: Iterable[str] = (),
) -> dict[str, Any]:
    """Return what describes a route to FastAPI.

    Args:
        status: of the answer
        schema: the answer's name in the schemas
        parameters: of the query
        reference: whether the path holds a model reference
        codes: of the problems that a request without mistakes may meet
    """
    known = (*_codes(parameters, reference), *codes)
    answer = {"description": "Done", "content": {"application/json": {"schema": _ref(schema)}}}
    return {
        "responses": {status: answer, **_problems(known)},
        "openapi_extra": {"parameters": _parameters(parameters, reference)},
    }


def predict_route(parameters: tuple[Parameter, ...], *, with_reference: bool) -> dict[str, Any]:
    """Return what describes a predict route to FastAPI."""
    codes = dict.fromkeys((*_codes(parameters, reference=True), *_BODY_CODES, *WORK_CODES))
    headers = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
    }
    answer = {
        "description": "What was found; a JPEG with the findings drawn for `format=image`",
        "headers": headers,
        "content": {
            "application/json": {"schema": _ref("Prediction")},
            "image/jpeg": {"schema": _BYTES},
        },
    }
    return {
        "responses": {200: answer, **_problems(codes)},
        "openapi_extra": {
            "parameters": _parameters(parameters, with_reference),
            "requestBody": _request_body(parameters),
        },
    }


def describe(app: FastAPI) -> None:
    """Add the schemas that the routes refer to to the description of `app`."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {}).setdefault("schemas", {}).update(SCHEMAS)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _codes(parameters: Iterable[Parameter], reference: bool) -> tuple[str, ...]:
    found = ("model_not_found", "invalid_parameter") if reference else ()
    return found or (("invalid_parameter",) if parameters else ())


def _problems(codes: Iterable[str]) -> dict[int | str, Any]:
    """Return one response for each status, its codes in the description."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        status = ERRORS[code].status if code in ERRORS else 503
        by_status.setdefault(status, []).append(code)
    return {
        status: {
            "description": ", ".join(f"`{code}`" for code in by_status[status]),
            "content": {MEDIA_TYPE: {"schema": _ref("Problem")}},
        }
        for status in sorted(by_status)
    }


def _parameters(parameters: Iterable[Parameter], reference: bool) -> list[dict[str, Any]]:
    path = {
        "name": "ref",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "The model: `name` for its highest version, or `name@version`.",
    }
    query = [
        {
            "name": parameter.name,
            "in": "query",
            "required": False,
            "schema": parameter.schema,
            "description": parameter.description,
        }
        for parameter in parameters
    ]
    return [path, *query] if reference else query


def _request_body(parameters: Iterable[Parameter]) -> dict[str, Any]:
    files = {
        "type": "array",
        "items": _BYTES,
        "description": "One picture each; the part may be repeated.",
    }
    fields = {
        parameter.name: {**parameter.schema, "description": parameter.description}
        for parameter in parameters
    }
    form = {"type": "object", "required": ["file"], "properties": {"file": files, **fields}}
    raw = {media_type: {"schema": _BYTES} for media_type in _IMAGE_TYPES}
    return {
        "required": True,
        "description": "One JPEG, PNG, WebP, BMP or TIFF picture, or a form with several.",
        "content": {
            **raw,
            "application/octet-stream": {"schema": _BYTES},
            "multipart/form-data": {"schema": form},
        },
    }


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}
