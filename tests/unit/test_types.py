"""References and keys: the grammar of what a client writes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidParameterError
from serve_app.types import ModelRef


@pytest.mark.parametrize("text", ["yolo26n", "fasteners-n@1", "a.b_c-d@v8.4.0"])
def test_references_survive_a_round_trip(text: str) -> None:
    """Parsing and printing a reference changes nothing."""
    assert str(ModelRef.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "@1", "a@", "a@1@2", ".hidden", "../up", "a/b", "a b", "ä", "a" * 129, "a\n"]
)
def test_malformed_references_are_refused(text: str) -> None:
    """Nothing that could leave the repository or confuse a log is a reference."""
    with pytest.raises(InvalidParameterError, match="malformed"):
        ModelRef.parse(text)


@given(st.text(max_size=300))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """No text gives another error."""
    with contextlib.suppress(InvalidParameterError):
        assert str(ModelRef.parse(text)) == text
