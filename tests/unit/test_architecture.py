"""The direction of imports: one way, as ARCHITECTURE.md draws it."""

import ast
from pathlib import Path

import pytest

import serve_app

PACKAGE = Path(serve_app.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

SHARED = {"errors", "types"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "hashing": set(),
    "types": {"errors"},
    "settings": SHARED,
    "metrics": set(),
    "logs": set(),
    "registry": SHARED | {"settings"},
    "fleet": SHARED | {"scaling", "hashing"},
    "cache": SHARED,
    "engines": SHARED,
    "loading": SHARED | {"engines"},
    "scaling": SHARED | {"tuning"},
    "routing": {"hashing"},
    "replica": SHARED
    | {"settings", "metrics", "logs", "registry", "cache", "loading", "engines", "scaling"}
    | {"routing", "fleet"},
    "ingress": SHARED | {"settings", "logs", "registry", "fleet", "routing"},
    "app": {"settings", "ingress", "replica", "tuning"},
    "tuning": set(),
    "preflight": SHARED | {"settings", "registry", "scaling", "fleet"},
    "watcher": set(),
    "__main__": {"settings", "preflight", "tuning", "watcher"},
    "__init__": set(),
}
"""For each part of serve_app, the other parts it may import."""

FOREIGN = {
    "ray": {"app", "metrics", "scaling", "replica", "ingress", "preflight", "watcher", "__main__"}
    | {"routing"},
    "torch": {"engines"},
    "ultralytics": {"engines"},
    "onnx": {"engines"},
    "onnxruntime": {"engines"},
    "openvino": {"engines"},
    "fastapi": {"ingress"},
    "starlette": {"ingress"},
}
"""For each heavy dependency, the parts that may import it."""


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    """A module imports only the parts below it, and only its own heavy dependencies."""
    part = _part(path)
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "serve_app" and len(parts) > 1 and parts[1] != part:
            known = (PACKAGE / parts[1]).exists() or (PACKAGE / f"{parts[1]}.py").exists()
            assert not known or parts[1] in ALLOWED[part], f"{part} must not import {name}"
        if parts[0] in FOREIGN:
            assert part in FOREIGN[parts[0]], f"{part} must not import {name}"


def test_private_names_of_ray_stay_in_one_module() -> None:
    """Only the bridge touches what Ray does not promise."""
    for path in MODULES:
        if path.name != "multiplex.py":
            private = [name for name in _imports(path) if name.startswith("ray.") and "._" in name]
            assert not private, f"{path.name} imports {private}"


def test_decisions_on_routes_know_no_ray() -> None:
    """Of the package `routing` only the router, which translates, imports Ray."""
    users = {path.name for path in MODULES if _part(path) == "routing" and "ray" in _tops(path)}
    assert users == {"router.py"}


def _tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(path)}
