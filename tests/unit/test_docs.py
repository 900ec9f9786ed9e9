"""The documents say what the code says: settings, metrics, errors, files."""

from pathlib import Path

import pytest

import serve_app
from serve_app.errors import ERRORS
from serve_app.metrics import ALL, Metric
from serve_app.settings import AppArgs, DetectorConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PACKAGE = Path(serve_app.__file__).parent


@pytest.mark.parametrize("settings", [AppArgs, DetectorConfig])
def test_every_setting_is_documented(settings: type[AppArgs] | type[DetectorConfig]) -> None:
    """README has a row for each setting, with the words of its own description."""
    for name, field in settings.model_fields.items():
        rows = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1, name
        assert field.description is not None
        assert field.description in rows[0]


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: str(metric.name))
def test_every_metric_is_documented(metric: Metric) -> None:
    """docs/metrics.md has a row for each metric, with its kind, unit and labels."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| `{metric.name}` |"))
    assert row.split("|")[2:4] == [f" {metric.kind} ", f" {metric.unit} "]
    for label in metric.labels:
        assert f"`{label}`" in row.split("|")[4]


def test_every_error_is_documented() -> None:
    """README has a row for each code, with its status."""
    for code, error in ERRORS.items():
        assert f"| {error.status} | `{code}` |" in README


def test_every_module_is_on_the_map() -> None:
    """ARCHITECTURE.md names each module of the package."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            assert path.name in text, path.relative_to(PACKAGE)
