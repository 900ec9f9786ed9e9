"""Renders an OpenAPI document as one HTML page without scripts or anything from elsewhere.

FastAPI's own /docs loads its code from a CDN and stays blank on a machine without a network.
"""

import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Json = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #0a7d5a; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto;
       padding: 1.5rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
code, pre { font: 14px/1.5 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem; border-radius: .4rem; overflow-x: auto; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .6rem 0; }
summary { cursor: pointer; padding: .5rem .75rem; } details > div { padding: 0 .75rem .5rem; }
.method { display: inline-block; min-width: 3.2rem; font-weight: 700; color: var(--accent); }
.soft { opacity: .75; }
table { border-collapse: collapse; width: 100%; margin: .3rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0;
         border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td:first-child { white-space: nowrap; }
th:nth-child(1) { width: 22%; } th:nth-child(2) { width: 26%; }
"""
_EXAMPLES = """\
curl -F file=@photo.jpg -F conf=0.4 {base}/v1/models/NAME/predict
curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' \\
     '{base}/v1/predict?model=NAME&amp;format=image' -o found.jpg
curl {base}/v1/models"""


def render(document: Json, base_url: str) -> str:
    """Return the page; `base_url` is where the examples find the server."""
    info = document["info"]
    examples = _EXAMPLES.format(base=escape(base_url))
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            *(f"<p>{_text(part)}</p>" for part in info["description"].strip().split("\n\n")),
            "<p>For programs: <a href='openapi.json'>openapi.json</a></p>",
            f"<pre>{examples}</pre>",
            *_operations(document),
            "<h2>Answers</h2>",
            *_schemas(document["components"]["schemas"]),
            "</body></html>",
        ]
    )


def _operations(document: Json) -> Iterator[str]:
    group = None
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["tags"][0] != group:
                group = operation["tags"][0]
                yield f"<h2>{escape(group)}</h2>"
            yield from _operation(method, path, operation)


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield (
        f"<details><summary><span class='method'>{method.upper()}</span> "
        f"<code>{escape(path)}</code> <span class='soft'>{escape(operation['summary'])}</span>"
        "</summary><div>"
    )
    yield f"<p>{_text(operation.get('description', ''))}</p>"
    parameters = operation.get("parameters", [])
    if parameters:
        rows = ((item["name"], _kind(item["schema"]), item["description"]) for item in parameters)
        yield _table(("Parameter", "Type", "Meaning"), rows)
    if "requestBody" in operation:
        body = operation["requestBody"]
        types = ", ".join(f"<code>{escape(name)}</code>" for name in body["content"])
        yield f"<p>Body: {_text(body['description'])} Content types: {types}</p>"
    yield _table(("Status", "Body", ""), map(_response, operation["responses"].items()))
    yield "</div></details>"


def _response(item: tuple[str, Json]) -> tuple[str, str, str]:
    status, response = item
    content = response.get("content", {})
    kinds = (_kind(body.get("schema", {})) for body in content.values())
    return status, " or ".join(dict.fromkeys(kinds)), response["description"]


def _schemas(schemas: Json) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f"<details id='{escape(name)}'><summary><code>{escape(name)}</code> "
        yield f"<span class='soft'>{_text(_description(schema))}</span></summary><div>"
        for part in schema.get("allOf", [schema]):
            if "$ref" in part:
                yield f"<p>All of {_kind(part)}, and:</p>"
            else:
                rows = _fields(part)
                yield _table(("Field", "Type", "Meaning"), rows)
        yield "</div></details>"


def _fields(schema: Json, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield a row for each field, with those of nested objects below their own."""
    for name, field in schema.get("properties", {}).items():
        yield prefix + name, _kind(field), _description(field)
        yield from _fields(field, f"{prefix}{name}.")


def _description(schema: Json) -> str:
    parts = [schema, *schema.get("anyOf", []), *schema.get("allOf", [])]
    return next((part["description"] for part in parts if part.get("description")), "")


def _kind(schema: Json) -> str:
    """Return a schema's type in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(f"<code>{escape(value)}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if schema.get("format") == "binary":
        return "picture"
    low = schema.get("minimum", schema.get("exclusiveMinimum", ""))
    high = schema.get("maximum", "")
    kind = escape(schema.get("type", ""))
    if low == high == "":
        span = ""
    elif high == "":
        span = f" from {low}" if "minimum" in schema else f" above {low}"
    else:
        span = f" {low} to {high}"
    default = f", default {escape(str(schema['default']))}" if "default" in schema else ""
    return kind + span + default


def _table(header: tuple[str, ...], rows: Iterator[tuple[str, str, str]]) -> str:
    """Return a table: names in the first column, HTML in the second, text in the third."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{_text(text)}</td></tr>"
        for name, kind, text in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
