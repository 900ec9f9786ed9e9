"""The shapes of the answers, as OpenAPI schemas."""

from typing import Any

Schema = dict[str, Any]

_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}
_TEXT: Schema = {"type": "string"}
_NUMBERS: Schema = {"type": "array", "items": _NUMBER}
_TASK: Schema = {"type": "string", "enum": ["detect", "segment", "pose", "obb", "classify"]}


def _text(description: str, example: str | None = None) -> Schema:
    schema = {**_TEXT, "description": description}
    return schema if example is None else {**schema, "example": example}


def _object(
    description: str, required: tuple[str, ...] | None = None, /, **fields: Schema
) -> Schema:
    """Return an object of which every field is required unless told otherwise."""
    return {
        "type": "object",
        "description": description,
        "required": list(fields if required is None else required),
        "properties": fields,
    }


def _array(items: Schema | str, description: str = "") -> Schema:
    content = {"$ref": f"#/components/schemas/{items}"} if isinstance(items, str) else items
    return {"type": "array", "items": content, "description": description}


def _object_of(values: Schema, description: str) -> Schema:
    return {"type": "object", "additionalProperties": values, "description": description}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_PROBLEM = _object(
    "An error, as RFC 9457 describes it",
    type=_text("Stable, one for each code", "urn:serve-app:problem:model_not_found"),
    title=_text("The kind of error, for people", "Model not found"),
    status={**_INTEGER, "example": 404},
    detail=_text("What was wrong, what was expected and what to do"),
    code=_text("Stable, for programs", "model_not_found"),
    request_id=_text("The same as the header X-Request-Id"),
)
_BOX = _object(
    "x1, y1 is the upper left corner, x2, y2 the lower right one; oriented boxes have four corners",
    ("x1", "y1", "x2", "y2"),
    **{f"{axis}{number}": _NUMBER for number in range(1, 5) for axis in "xy"},
)
_FINDING = _object(
    "One thing that was found, equal to an entry of Ultralytics' Results.summary()",
    ("name", "class", "confidence"),
    name=_text("The class in words", "person"),
    **{"class": _INTEGER},
    confidence=_NUMBER,
    box=_BOX,
    segments=_object("The outline; for segment models", x=_NUMBERS, y=_NUMBERS),
    keypoints=_object(
        "The joints; for pose models", ("x", "y"), x=_NUMBERS, y=_NUMBERS, visible=_NUMBERS
    ),
)
_IMAGE = _object(
    "One picture's answer",
    shape={**_array(_INTEGER, "Height and width in pixels"), "example": [1080, 810]},
    results=_array("Finding", "By falling confidence; the five best classes of classify models"),
    speed=_object("Milliseconds", preprocess=_NUMBER, inference=_NUMBER, postprocess=_NUMBER),
)
_METADATA = _object(
    "Facts on the whole call",
    imageCount=_INTEGER,
    functionTimeCall={**_NUMBER, "description": "Seconds from the request's arrival"},
    model=_text("The version that answered", "parts@2"),
    task=_TASK,
    version={"type": "object", "additionalProperties": _TEXT},
)
_RESIDENT = _object("Where a model is in memory", replica_id=_TEXT, bytes=_INTEGER, state=_TEXT)
_COPIES: Schema = {
    "anyOf": [_INTEGER, {"const": "all"}],
    "description": "On how many replicas it is wanted; 0: it is not pinned",
}
_MODEL = _object(
    "A registered version",
    name=_TEXT,
    version=_TEXT,
    key=_text("name@version", "parts@2"),
    description=_or_null(_TEXT),
    task=_or_null(_TASK),
    classes=_array(_TEXT, "Empty when the model's card does not tell"),
    imgsz=_or_null(_INTEGER),
    source=_text("Where its file lies", "folder"),
    format={"type": "string", "enum": ["pt", "onnx"]},
    size_bytes=_or_null(_INTEGER),
    resident=_or_null(_array("Resident", "Null when the replicas could not be asked")),
)
_FACTS: Schema = {"type": "object", "additionalProperties": True}
_DETAILS: Schema = {
    "allOf": [
        {"$ref": "#/components/schemas/Model"},
        _object(
            "All that its card says",
            versions=_array(_TEXT, "All of this name, from the lowest to the highest"),
            wanted=_or_null(_COPIES),
            architecture=_or_null(_TEXT),
            training=_FACTS,
            evaluation=_FACTS,
            license=_or_null(_TEXT),
        ),
    ]
}
_REPLICA_MODEL = _object(
    "A model as a replica holds it",
    key=_TEXT,
    state=_TEXT,
    bytes=_INTEGER,
    leases={**_INTEGER, "description": "Requests that use it now"},
    pinned={"type": "boolean"},
    idle_s={**_NUMBER, "description": "Seconds since its last use"},
)
_REPLICA = _object(
    "One replica",
    replica_id=_TEXT,
    pid=_INTEGER,
    node_id=_TEXT,
    device=_TEXT,
    budget_bytes=_INTEGER,
    used_bytes=_INTEGER,
    max_models=_or_null(_INTEGER),
    models=_array("ReplicaModel"),
    advertised=_array(_TEXT, "The models that Ray's routers are told of"),
    config_error=_or_null(_text("What of user_config was refused or could not be done, and why")),
    share=_array(_TEXT, "Of the pins and preloads of user_config, those that fell to this replica"),
    pinned=_array(_TEXT, "The models that are never evicted here"),
    second_copies=_array(_TEXT, "Those of them that are here only until another replica has gone"),
    pin_errors=_object_of(_TEXT, "Why a pinned model could not be loaded here, by key"),
    configured=_object_of(_or_null(_INTEGER), "Copies that user_config pins, null: everywhere"),
    pins=_array("Pin", "The last pinning or unpinning of each model over HTTP"),
    spare_copies_after_s=_or_null(_NUMBER),
    working_set_window_s=_NUMBER,
    load=_object_of(_NUMBER, "What the autoscaler is told of this replica"),
    set_aside=_array("SetAside", "Models whose requests are refused: their loads kept failing"),
)
_PIN = _object(
    "What someone wanted of a model, and when",
    key=_TEXT,
    copies=_or_null({**_INTEGER, "description": "0: unpinned; null: on every replica"}),
    time_s={**_NUMBER, "description": "Seconds since 1970"},
    author=_TEXT,
)
_SET_ASIDE = _object(
    "A model whose loads kept failing",
    key=_TEXT,
    code=_text("Of the error that the last load ended in", "model_broken"),
    failures={**_INTEGER, "description": "Loads in a row that failed"},
    retry_in_s={**_NUMBER, "description": "Seconds until a load is tried again"},
)

SCHEMAS: dict[str, Schema] = {
    "Prediction": _object(
        "The answer to a predict call",
        images=_array("Image", "In the order of the request"),
        metadata=_METADATA,
    ),
    "Image": _IMAGE,
    "Finding": _FINDING,
    "ModelList": _object(
        "A page of models",
        models=_array("Model"),
        total={**_INTEGER, "description": "Of all pages"},
    ),
    "Model": _MODEL,
    "ModelDetails": _DETAILS,
    "Resident": _RESIDENT,
    "Placed": _object(
        "The model is in memory",
        ("model", "state", "wanted", "replicas", "took_ms"),
        model=_TEXT,
        state={"type": "string", "enum": ["resident", "pinned"]},
        wanted=_COPIES,
        replicas=_array(_TEXT, "The ids of those that this call made hold it, or found holding it"),
        shortfall=_text("Why it is on fewer replicas than wanted; only where it is"),
        took_ms=_NUMBER,
    ),
    "Unpinned": _object("The model may be evicted", model=_TEXT, state=_TEXT, was=_COPIES),
    "Unloaded": _object("The model is not in memory", model=_TEXT, state=_TEXT, replicas=_INTEGER),
    "ReplicaList": _object("The replicas", replicas=_array("Replica")),
    "Replica": _REPLICA,
    "ReplicaModel": _REPLICA_MODEL,
    "SetAside": _SET_ASIDE,
    "Pin": _PIN,
    "Health": _object("The server's state", status=_TEXT),
    "Problem": _PROBLEM,
}
